"""The object store: its client, and the JSON of the records in it."""
