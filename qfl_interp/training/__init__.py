"""The loop that turns a task and a configuration into a run."""
