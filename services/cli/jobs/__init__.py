"""Commands that start, change and remove jobs."""
