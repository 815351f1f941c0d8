"""What a user types. `python -m egmae_jax.predict` is `predict.py` here."""
