"""Which regions raise a model's score, and what pre-training does to an image."""
