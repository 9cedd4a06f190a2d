"""Which heads or neurons does the answer need?"""
