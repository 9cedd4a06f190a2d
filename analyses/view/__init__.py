"""What `qfl view` shows of a run at a step, and the lenses that it starts; free of the page itself."""
