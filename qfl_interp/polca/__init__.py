"""POLCA: the change of every token's loss along single directions of weight space, its clusters, its breakthroughs."""
