"""The job: its file as a checked value, the catalog of all that the file may name, and the user's own code."""
