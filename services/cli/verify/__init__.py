"""Commands that check a job's record."""
