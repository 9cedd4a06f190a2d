"""A page of sections with figures and tables that needs no other file and no network."""
