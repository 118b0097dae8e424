"""Heterogeneity for experiments: how slow, far, absent or hostile a pool's clients are, on the real services."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt

from shared.job.catalog.choice import Choice, Seconds, Strict

Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=1, le=1000)]

# --- speed ----------------------------------------------------------------------------------


class Profiles(Strict):
    """Exact shares of slow and medium clients among default ones, as with 0.5, 0.75 and 1.25 processors (FLTK)."""

    name: Literal["profiles"] = "profiles"
    slow: Share = 0.1
    medium: Share = 0.2
    ratios: tuple[Factor, Factor, Factor] = (2.5, 1.67, 1.0)  # how many times as long each kind takes


class Phones(Strict):
    """The speeds of phones, old and new, cheap and dear: from 1 to 16 times as long (after EasyFL)."""

    name: Literal["phones"] = "phones"


class LogNormal(Strict):
    """exp(N(0, sigma)) times as long, and never less than once."""

    name: Literal["lognormal"] = "lognormal"
    sigma: float = Field(default=1.0, ge=0, le=5)


class Ratios(Strict):
    """Given clients take given times as long."""

    name: Literal["ratios"] = "ratios"
    ratios: dict[str, Factor]


SpeedSpec = Annotated[Profiles | Phones | LogNormal | Ratios, Choice("simulate.speed")]

# --- network --------------------------------------------------------------------------------


class NetworkSpec(Strict):
    """How long models and updates travel: latency + bytes / rate; a client has the rates times exp(N(0, sigma))."""

    latency: Seconds | None = None
    down_mbps: float | None = Field(default=None, gt=0)  # 10^6 bits a second
    up_mbps: float | None = Field(default=None, gt=0)
    sigma: float = Field(default=0.0, ge=0, le=5)


# --- availability ---------------------------------------------------------------------------


class Cycle(Strict):
    """Each client is there for a while and away for a while, again and again, from a moment of its own."""

    name: Literal["cycle"] = "cycle"
    there: Seconds
    away: Seconds


class Trace(Strict):
    """Spans in which clients are there: pairs of seconds since the job began; who is not listed always is."""

    name: Literal["trace"] = "trace"
    spans: dict[str, tuple[tuple[float, float], ...]]
    period: Seconds | None = None  # after which the trace begins again


AvailabilitySpec = Annotated[Cycle | Trace, Choice("simulate.availability")]

# --- faults and attacks ---------------------------------------------------------------------


class DropoutSpec(Strict):
    """A client that is asked gives nothing, with this probability in each round: silently, or saying so."""

    rate: Share = 0.1
    how: Literal["silent", "error"] = "silent"


class LabelFlip(Strict):
    """A share of the clients, exact but for rounding, train on labels y → classes − 1 − y."""

    name: Literal["label_flip"] = "label_flip"
    fraction: Share = 0.2


class ScaledUpdate(Strict):
    """A share of the clients, as above, send their update times `factor`; a negative one goes against the others."""

    name: Literal["scaled_update"] = "scaled_update"
    fraction: Share = 0.2
    factor: float = -10.0


AttackSpec = Annotated[LabelFlip | ScaledUpdate, Choice("simulate.attack")]


class SimulateSpec(Strict):
    """What is simulated; left out, nothing is."""

    speed: SpeedSpec | None = None
    network: NetworkSpec | None = None
    availability: AvailabilitySpec | None = None
    aware: StrictBool = True  # selection asks only clients that are there
    dropout: DropoutSpec | None = None
    attack: AttackSpec | None = None
    seed: StrictInt = Field(default=0, ge=0, lt=2**31)  # of who is slow, absent or hostile
