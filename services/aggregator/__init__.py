"""The aggregator: selects cohorts, announces rounds, folds updates, commits models; blind to what a model is."""
