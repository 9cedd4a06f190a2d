"""Changing activations, and what the model does then."""
