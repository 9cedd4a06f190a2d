"""One folder a lens: what it computes, its figure, its words."""
