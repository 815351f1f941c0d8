"""The book of results: runs the experiments of docs/results.md and writes their tables."""
