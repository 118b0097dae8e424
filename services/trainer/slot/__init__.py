"""A slot: a warm process that trains one task at a time."""
