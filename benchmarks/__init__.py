"""Each measures one thing side by side with PyTorch and prints one table."""
