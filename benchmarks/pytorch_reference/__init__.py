"""The paper's method in idiomatic PyTorch, with which `egmae_jax` is compared."""
