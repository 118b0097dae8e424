"""The stack in containers, on one machine."""
