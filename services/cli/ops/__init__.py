"""Commands that operate the servers and services."""
