"""The record of a job in the object store: how it is written, cut into parts, and read again."""
