"""Which features does the answer need?"""
