"""The paper in idiomatic PyTorch: what `egmae_jax` is measured against, and compared with."""
