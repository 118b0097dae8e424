"""The aggregator: selects cohorts, announces rounds, folds updates, commits models; a model is only arrays to it."""
