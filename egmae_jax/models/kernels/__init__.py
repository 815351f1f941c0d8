"""Forms that are faster on a platform, each behind one function."""
