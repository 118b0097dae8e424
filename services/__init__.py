"""The processes of fedq, each in a package of its own; none imports another."""
