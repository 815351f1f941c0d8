"""Grad-CAM heat maps, and figures of the entropy, noise and reconstruction of images."""
