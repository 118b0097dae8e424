"""Who trains in a round: the policies that a job file may name."""

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
    """What every policy has that asks only some of the clients."""

    clients: Count
    over_select: float = Field(default=1.0, ge=1, le=10)  # asks so many times `clients`, and goes on with the fastest

    @property
    def size(self) -> int:
        """How many are asked; the fastest `target` of them are waited for."""
        return math.ceil(self.clients * self.over_select - 1e-9)


class SelectRandom(Some):
    """Some of them, drawn anew each round from the job's seed."""

    name: Literal["random"] = "random"


class RoundRobin(Some):
    """One after the other, each as often as any other."""

    name: Literal["round_robin"] = "round_robin"


class PowerOfChoice(Some):
    """Draws `candidates` in proportion to their examples, asks those of the highest last loss (Cho et al. 2020)."""

    name: Literal["power_of_choice"] = "power_of_choice"
    candidates: Count | None = None  # twice those that are asked where left out


class Oort(Some):
    """By statistical utility and speed, exploring as it goes (Lai et al. 2021, OSDI); FedScale's names and defaults."""

    name: Literal["oort"] = "oort"
    exploration_factor: Share = 0.9  # of a cohort that is drawn among clients that never delivered, at first
    exploration_decay: Share = 0.98  # × each round
    exploration_min: Share = 0.3
    exploration_alpha: float = Field(default=0.1, ge=0)  # of √(alpha · ln(round) / last round it delivered in)
    round_threshold: float = Field(default=30.0, gt=0, le=100)  # percentile of durations that is the preferred one
    round_penalty: float = Field(default=2.0, ge=0)  # exponent of (preferred / own duration) where that is slower
    pacer_delta: float = Field(default=5.0, ge=0, le=100)  # percentile points by which the threshold is moved
    pacer_step: Count = 20  # rounds that are compared with as many before them
    clip_bound: Share = 0.9  # quantile of utilities above which they are clipped
    cut_off_util: Share = 0.05  # of the last score that would be taken by score: draws among those that have as much
    sample_window: float = Field(default=5.0, ge=1, le=1000)  # exploration draws among so many times the wanted
    blacklist_rounds: StrictInt = Field(default=-1, ge=-1)  # times asked after which a client rests; -1: never
    blacklist_max_len: Share = 0.3  # of all clients, at most


class Tifl(Some):
    """Tiers by measured latency, one of which is drawn each round by its accuracy and credits (Chai et al. 2020)."""

    name: Literal["tifl"] = "tifl"
    tiers: StrictInt = Field(default=5, ge=1, le=100)
    interval: Count = 10  # rounds between two changes of the tiers' probabilities
    credits: Count | None = None  # rounds that a tier may be drawn; ⌈rounds / tiers⌉ where left out


SelectSpec = Annotated[SelectAll | SelectRandom | RoundRobin | PowerOfChoice | Oort | Tifl, Choice("select")]
