"""The data that clients train on: the catalog's data sets, or the user's own."""
