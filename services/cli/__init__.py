"""Command line `fedq`, with which an operator controls the federation."""
