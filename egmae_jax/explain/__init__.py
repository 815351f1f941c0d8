"""Where a classifier looks: heat maps of its evidence, pictures of them, and how true they are."""
