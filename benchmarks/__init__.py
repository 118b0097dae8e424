"""What fedq costs, measured on the real services."""
