"""Whose data a client trains on: the catalog's data sets, or the user's own."""
