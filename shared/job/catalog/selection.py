"""Selection policies that a job file may name: each chooses the clients of a round."""

import math
from typing import Annotated, Literal

from pydantic import Field, StrictInt

from shared.job.catalog.choice import Choice, Strict

Count = Annotated[StrictInt, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class SelectAll(Strict):
    """Every client, every round."""

    name: Literal["all"] = "all"


class Some(Strict):
    """Base of the policies that ask only some of the clients."""

    clients: Count
    over_select: float = Field(default=1.0, ge=1, le=10)  # factor on the clients that are asked: the fastest count

    @property
    def size(self) -> int:
        """Number of clients that a round asks; it waits for the fastest `target` of them."""
        return math.ceil(self.clients * self.over_select - 1e-9)


class SelectRandom(Some):
    """A random choice of clients, drawn again each round from the job's seed."""

    name: Literal["random"] = "random"


class RoundRobin(Some):
    """Clients in turn, so that each is asked as often as any other."""

    name: Literal["round_robin"] = "round_robin"


class PowerOfChoice(Some):
    """Draws `candidates` in proportion to their examples; those with the highest last loss train (Cho et al. 2020)."""

    name: Literal["power_of_choice"] = "power_of_choice"
    candidates: Count | None = None  # twice the clients that are asked, if left out


class Oort(Some):
    """By statistical utility and speed, exploring as it goes (Lai et al. 2021, OSDI); FedScale's names and defaults."""

    name: Literal["oort"] = "oort"
    exploration_factor: Share = 0.9  # of a cohort, drawn from clients that never delivered, at first
    exploration_decay: Share = 0.98  # × each round
    exploration_min: Share = 0.3
    exploration_alpha: float = Field(default=0.1, ge=0)  # of √(alpha · ln(round) / last round it delivered in)
    round_threshold: float = Field(default=30.0, gt=0, le=100)  # percentile of durations that is preferred
    round_penalty: float = Field(default=2.0, ge=0)  # exponent of (preferred / own duration) if slower
    pacer_delta: float = Field(default=5.0, ge=0, le=100)  # percentile points of one step of the threshold
    pacer_step: Count = 20  # rounds, compared with as many before them
    clip_bound: Share = 0.9  # quantile of utilities above which they are clipped
    cut_off_util: Share = 0.05  # of the lowest score that would be chosen: clients with at least that are drawn from
    sample_window: float = Field(default=5.0, ge=1, le=1000)  # exploration draws from so many times the wanted
    blacklist_rounds: StrictInt = Field(default=-1, ge=-1)  # selections after which a client rests; -1: never
    blacklist_max_len: Share = 0.3  # of all clients, at most


class Tifl(Some):
    """Tiers by measured latency, one of which is drawn each round by its accuracy and credits (Chai et al. 2020)."""

    name: Literal["tifl"] = "tifl"
    tiers: StrictInt = Field(default=5, ge=1, le=100)
    interval: Count = 10  # rounds between two changes of the tiers' probabilities
    credits: Count | None = None  # rounds in which a tier may be drawn; ⌈rounds / tiers⌉ if left out


SelectSpec = Annotated[SelectAll | SelectRandom | RoundRobin | PowerOfChoice | Oort | Tifl, Choice("select")]
