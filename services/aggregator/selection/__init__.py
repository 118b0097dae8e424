"""Selection of the clients of a round: a pure function of the job, the trainers alive, the history, and the round.

`cohort` is the entry. `policies` has the table of the policies in `shared.job.catalog.selection`, and updates the
history that they choose by. `policy` has the protocol of a policy and its values. A policy module owns its state.
"""
