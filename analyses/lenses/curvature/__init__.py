"""How sharp is the loss, and where do the steps go?"""
