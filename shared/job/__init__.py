"""The job: its file as a checked value, the catalog of what it may name, and the user's own code."""
