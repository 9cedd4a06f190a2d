"""Where the checkpoints of a suite come from: one module a kind, all of them a `Source`."""
