"""The site's pages that are made of the code."""
