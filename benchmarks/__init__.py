"""The script behind every number in docs/results.md."""
