"""Strategies make the next model of a round's updates: one class for each entry of `shared.job.catalog.strategies`.

Pure, in NumPy. The aggregator runs them, and `fedq replay` and `fedq verify` run them again.
"""
