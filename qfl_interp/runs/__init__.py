"""What lies on disk: a run's configuration, checkpoints and tables, and other people's suites of checkpoints."""
