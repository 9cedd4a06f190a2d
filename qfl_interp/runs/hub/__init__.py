"""The Hugging Face hub: which checkpoints a repository has, fetching them, and runs of this library on it."""
