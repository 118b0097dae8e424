"""The policies that treat all clients alike: every client each round, or some of them by lot."""

from collections.abc import Collection

from services.aggregator.selection import lottery
from services.aggregator.selection.policy import Policy, Request
from shared.job.catalog.selection import SelectAll, SelectRandom


class AllPolicy(Policy[SelectAll]):
    """Every client, every round."""

    def choose(self, _: SelectAll, request: Request, /) -> Collection[str]:
        return request.candidates


class RandomPolicy(Policy[SelectRandom]):
    """Some of the clients, each as likely as any other."""

    def choose(self, _: SelectRandom, request: Request, /) -> list[str]:
        return lottery.drawn(request.spec, request.candidates, request.number, request.attempt, request.wanted)
