"""Where is a feature, and what brings it there?"""
