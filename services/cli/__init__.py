"""The command line: the operator's hand on the federation."""
