"""Sweeps: several runs of one recipe that differ in a few config fields, and their comparison."""
