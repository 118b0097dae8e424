"""Who trains in a round: a pure function of the job, who is alive, what is known of the clients, and the round.

`choosing` is the entry, `history` what is known; each policy of `shared.job.catalog.selection` has a module of its own.
"""

from services.aggregator.selection.cohort import enough, lacking, population, select

__all__ = ["enough", "lacking", "population", "select"]
