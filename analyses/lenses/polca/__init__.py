"""Which tokens learn together, unseen in the loss?"""
