"""The models that are trained: the catalog's models, or the user's own, and their way into a flat file and back."""
