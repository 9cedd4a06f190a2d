"""When the loss moves, when a feature is learned, and which came first."""
