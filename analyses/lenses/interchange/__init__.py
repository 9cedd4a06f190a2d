"""Does the answer follow a feature?"""
