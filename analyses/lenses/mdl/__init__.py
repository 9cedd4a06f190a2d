"""How easily can a feature be read?"""
