"""The `qfl` command: parse, call one library function, print. Heavy imports stay inside the commands."""
