"""What is learned from: tasks by name, data sets, streams and splits of examples."""
