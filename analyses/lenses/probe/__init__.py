"""Which features can be read off, where and when?"""
