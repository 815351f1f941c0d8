"""The training loop and what each of the two stages does in a step."""
