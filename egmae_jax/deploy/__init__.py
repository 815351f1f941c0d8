"""Uses of a finished run: classify new images, export its models, try them in a local page."""
