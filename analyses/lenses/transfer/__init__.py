"""Does the probe of one step work at another?"""
