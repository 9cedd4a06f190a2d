"""Which features do probes read, where and when?"""
