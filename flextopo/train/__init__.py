"""Training, evaluation and comparison."""
