"""Activations of many examples at chosen places, in memory or on disk."""
