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
    ratios: tuple[Factor, Factor, Factor] = (2.5, 1.67, 1.0)  # factors on the training time of each kind


class Phones(Strict):
    """Speeds of old and new, cheap and expensive phones: training takes 1 to 16 times as long (after EasyFL)."""

    name: Literal["phones"] = "phones"


class LogNormal(Strict):
    """Training takes exp(N(0, sigma)) times as long, but at least 1 times."""

    name: Literal["lognormal"] = "lognormal"
    sigma: float = Field(default=1.0, ge=0, le=5)


class Ratios(Strict):
    """Training takes a given number of times as long for each client listed."""

    name: Literal["ratios"] = "ratios"
    ratios: dict[str, Factor]


SpeedSpec = Annotated[Profiles | Phones | LogNormal | Ratios, Choice("simulate.speed")]

# --- network --------------------------------------------------------------------------------


class NetworkSpec(Strict):
    """Transfer times of models and updates: latency + bytes / rate; each client's rates are × exp(N(0, sigma))."""

    latency: Seconds | None = None
    down_mbps: float | None = Field(default=None, gt=0)  # 10^6 bits a second
    up_mbps: float | None = Field(default=None, gt=0)
    sigma: float = Field(default=0.0, ge=0, le=5)


# --- availability ---------------------------------------------------------------------------


class Cycle(Strict):
    """Each client is present for `there`, then absent for `away`, and so on; each starts at a different moment."""

    name: Literal["cycle"] = "cycle"
    there: Seconds
    away: Seconds


class Trace(Strict):
    """Spans of presence, as pairs of seconds since the job began; a client that is not listed is always present."""

    name: Literal["trace"] = "trace"
    spans: dict[str, tuple[tuple[float, float], ...]]
    period: Seconds | None = None  # the trace begins again after this time


AvailabilitySpec = Annotated[Cycle | Trace, Choice("simulate.availability")]

# --- faults and attacks ---------------------------------------------------------------------


class DropoutSpec(Strict):
    """A selected client gives no update, with probability `rate` in each round: silently, or with an error."""

    rate: Share = 0.1
    how: Literal["silent", "error"] = "silent"


class LabelFlip(Strict):
    """A share of the clients, exact except for rounding, trains on flipped labels, y → classes − 1 − y."""

    name: Literal["label_flip"] = "label_flip"
    fraction: Share = 0.2


class ScaledUpdate(Strict):
    """A share of the clients, exact except for rounding, sends updates × `factor`; below 0 opposes the others."""

    name: Literal["scaled_update"] = "scaled_update"
    fraction: Share = 0.2
    factor: float = -10.0


AttackSpec = Annotated[LabelFlip | ScaledUpdate, Choice("simulate.attack")]


class SimulateSpec(Strict):
    """Simulated impairments of the clients; without this section, there are none."""

    speed: SpeedSpec | None = None
    network: NetworkSpec | None = None
    availability: AvailabilitySpec | None = None
    aware: StrictBool = True  # selection asks only clients that are present
    dropout: DropoutSpec | None = None
    attack: AttackSpec | None = None
    seed: StrictInt = Field(default=0, ge=0, lt=2**31)  # decides which clients are slow, absent or hostile
