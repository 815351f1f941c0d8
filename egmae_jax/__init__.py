"""Entropy-guided self-supervised learning for medical image classification, in JAX."""
