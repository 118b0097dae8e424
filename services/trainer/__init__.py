"""Trains clients: hears of a round, trains its pool's clients or the one silo it is, uploads what they learned."""
