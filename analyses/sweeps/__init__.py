"""What is asked of a sweep: emergence across budgets, laws of scaling."""
