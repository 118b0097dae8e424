"""Stack in containers on one machine."""
