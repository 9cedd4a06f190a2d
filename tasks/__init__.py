"""The tasks, one file each; found through entry points, so that the core names none of them."""

if __name__ == "tasks":  # from a checkout
    from qfl_interp.old_names import serve

    serve(__name__)
