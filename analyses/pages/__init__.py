"""Every lens of a run on one compute axis, and on one page."""
