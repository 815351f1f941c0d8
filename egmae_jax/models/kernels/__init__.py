"""Faster implementations of operations by platform, each with its plain form beside it."""
