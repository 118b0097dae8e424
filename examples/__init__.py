"""Job files that run, and the user code that some of them name."""
