"""How well does the model do on held-out examples?"""
