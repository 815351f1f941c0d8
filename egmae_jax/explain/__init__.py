"""What raises a model's score, and what guides its pre-training."""
