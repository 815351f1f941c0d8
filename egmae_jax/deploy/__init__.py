"""Uses a finished run: classifies new images, exports its models, shows a page to try them."""
