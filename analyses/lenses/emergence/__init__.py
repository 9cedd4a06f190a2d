"""Was a feature learned before the loss moved, or with it?"""
