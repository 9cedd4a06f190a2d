"""The tasks, one file each; found through entry points, so that the core names none of them."""

# Lets qfl_interp tell this package from a user's own tasks.py that shadows it.
QFL_INTERP_PACKAGE = True
