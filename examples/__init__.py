"""Job files that run, and the code of one's own that two of them name."""
