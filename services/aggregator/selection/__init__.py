"""Selection of the clients of a round: a pure function of the job, the trainers alive, the history, and the round.

`cohort` is the entry, and `history` what is known of the clients. Each policy of `shared.job.catalog.selection` is a
module that owns its state, and `policies` is the table of them all.
"""
