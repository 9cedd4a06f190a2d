"""Whether checkpoints are what they say: `check_suite`."""
