"""What a model looks at, and what guides its pre-training."""
