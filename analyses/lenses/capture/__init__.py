"""Activations on disk, for later analyses."""
