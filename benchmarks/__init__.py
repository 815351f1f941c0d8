"""Benchmarks: each compares one task with PyTorch or another peer in the same run."""
