"""The job file: one schema for what a person writes, an editor completes and every service reads.

Pure: text and values in, a frozen `JobSpec` out, or `BadInput` that names each mistake with its path,
its value and what is allowed.
"""

import copy
import difflib
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from shared.errors import BadInput

CLIENT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
EXTENDED = 3  #: a round that is held up may last this many times its deadline, and no longer
CLAIMS = 20  #: owners that a job may lose without committing a round between them; then it fails

JOB_ID = r"^[a-z0-9][a-z0-9-]{0,38}-[a-z0-9]{6}$"
ATTRIBUTE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)\s*", value)
        if not match:
            raise ValueError("must be a duration such as 500ms, 60s, 5m or 2h")
        return float(match[1]) * _UNITS[match[2]]
    return value


Seconds = Annotated[
    float,
    BeforeValidator(_duration),
    Field(gt=0, le=7 * 86400),
    # Ours, because pydantic's own has `gt` and `le` here, which no editor knows.
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 604800}, {"type": "string"}]}),
]
ClientName = Annotated[str, Field(pattern=CLIENT_NAME)]


class Strict(BaseModel):
    """A value that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Custom(Strict):
    """The user's own, by `module:attribute`, called with `args`."""

    name: str = Field(pattern=ATTRIBUTE)
    args: dict[str, Any] = {}


def _catalog(tag: str, *known: str) -> Discriminator:
    """Chooses the schema by `name`: a catalog entry, or the user's own where there is a colon."""

    def choose(value: object) -> str | None:
        name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
        if isinstance(name, str):
            return "custom" if ":" in name else name if name in known else None
        return None

    allowed = ", ".join(known)
    return Discriminator(
        choose,
        custom_error_type="unknown_name",
        custom_error_message=f"allowed for {tag}.name: {allowed}, or your own as module:attribute",
    )


# --- model ----------------------------------------------------------------------------------


class Softmax(Strict):
    """Multinomial logistic regression on the flattened input."""

    name: Literal["softmax"] = "softmax"


class Mlp(Strict):
    """Fully connected layers with ReLU between them."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[StrictInt, Field(ge=1, le=65536)], ...] = (64,)


class LeNet(Strict):
    """LeCun et al. 1998, with ReLU and max pooling, sized to the images it is given."""

    name: Literal["lenet"] = "lenet"


ModelSpec = Annotated[
    Annotated[Softmax, Tag("softmax")]
    | Annotated[Mlp, Tag("mlp")]
    | Annotated[LeNet, Tag("lenet")]
    | Annotated[Custom, Tag("custom")],
    _catalog("model", "softmax", "mlp", "lenet"),
]

# --- data -----------------------------------------------------------------------------------


class Iid(Strict):
    """Shuffled, then cut into equal shares."""

    name: Literal["iid"] = "iid"


class Dirichlet(Strict):
    """Each class is dealt out in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019)."""

    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(default=0.5, gt=0, le=1e6)
    min_size: StrictInt = Field(default=2, ge=1)


PartitionSpec = Annotated[Iid | Dirichlet, Field(discriminator="name")]


class Digits(Strict):
    """1,797 handwritten digits of 8×8 grey pixels (UCI, carried by scikit-learn)."""

    name: Literal["digits"] = "digits"
    clients: StrictInt = Field(ge=1, le=1000)
    partition: PartitionSpec = Iid()
    test_fraction: float = Field(default=0.2, ge=0, lt=1)


class CustomData(Custom):
    """The user's own data; `clients` is how many shares a pool trains (a silo brings its own)."""

    clients: StrictInt | None = Field(default=None, ge=1, le=1_000_000)


DataSpec = Annotated[
    Annotated[Digits, Tag("digits")] | Annotated[CustomData, Tag("custom")],
    _catalog("data", "digits"),
]

# --- training -------------------------------------------------------------------------------


class Sgd(Strict):
    """Stochastic gradient descent, with classical momentum."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)


class TrainSpec(Strict):
    """What one client does with the model it is given."""

    epochs: StrictInt = Field(default=1, ge=1, le=10_000)
    batch_size: StrictInt = Field(default=32, ge=1)
    optimizer: Sgd = Sgd()


class CustomTrain(Custom):
    """The user's own local step; see `services.trainer.learning`."""


TrainChoice = Annotated[
    Annotated[TrainSpec, Tag("builtin")] | Annotated[CustomTrain, Tag("custom")],
    Discriminator(
        lambda value: (
            "custom" if (isinstance(value, Mapping) and "name" in value) or isinstance(value, Custom) else "builtin"
        )
    ),
]

# --- rounds ---------------------------------------------------------------------------------


class SelectAll(Strict):
    """Every client, every round."""

    name: Literal["all"] = "all"


class SelectRandom(Strict):
    """`clients` × `over_select` of them, drawn anew each round from the job's seed."""

    name: Literal["random"] = "random"
    clients: StrictInt = Field(ge=1)
    over_select: float = Field(default=1.0, ge=1, le=10)

    @property
    def size(self) -> int:
        """How many are asked; the fastest `target` of them are waited for."""
        return math.ceil(self.clients * self.over_select - 1e-9)


SelectSpec = Annotated[SelectAll | SelectRandom, Field(discriminator="name")]


class RoundsSpec(Strict):
    """When a round is done. `target` and `minimum` default to every client that was meant to answer."""

    count: StrictInt = Field(ge=1, le=100_000)
    target: StrictInt | None = Field(default=None, ge=1)
    minimum: StrictInt | None = Field(default=None, ge=1)
    deadline: Seconds = 60.0
    below_minimum: Literal["fail", "retry"] = "fail"
    attempts: StrictInt = Field(default=3, ge=1, le=100)  # of one round, where below_minimum is retry
    wait: Seconds = 3600.0  # for enough trainers to be alive; then the job fails


class FedAvg(Strict):
    """The mean of the updates, weighted by examples (McMahan et al. 2017)."""

    name: Literal["fedavg"] = "fedavg"


class LimitsSpec(Strict):
    """Bounds that every update is held to; the grid of the exact fold follows from the first two."""

    max_abs: float = Field(default=256.0, gt=0, le=2**20)
    max_examples: StrictInt = Field(default=2**20, ge=1, le=2**28)
    max_norm: float | None = Field(default=None, gt=0)
    max_model_mb: StrictInt = Field(default=4096, ge=1)


class EvaluateSpec(Strict):
    """Held-out evaluation of the model after every `every`-th round and the last; 0 turns it off."""

    every: StrictInt = Field(default=1, ge=0)
    deadline: Seconds = 60.0


class JobSpec(Strict):
    """One federated training."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,37}[a-z0-9])?$")
    seed: StrictInt = Field(default=0, ge=0, lt=2**31)
    model: ModelSpec
    data: DataSpec
    train: TrainChoice = TrainSpec()
    select: SelectSpec = SelectAll()
    rounds: RoundsSpec
    strategy: FedAvg = FedAvg()
    limits: LimitsSpec = LimitsSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    pool: ClientName | None = None
    silos: tuple[ClientName, ...] | None = Field(default=None, min_length=1)
    keep_updates: StrictBool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.pool is None) == (self.silos is None):
            raise ValueError(
                "give either pool (trainers that share the data's clients) or silos (the clients that own their data)"
            )
        if self.silos is not None and len(set(self.silos)) < len(self.silos):
            raise ValueError("silos names a client twice")
        if self.pool is not None and self.data.clients is None:
            raise ValueError("a pool needs data.clients: into how many clients the data is split")
        population = self.population
        if isinstance(self.select, SelectRandom) and self.select.clients > population:
            raise ValueError(f"select.clients is {self.select.clients}, but there are {population} clients")
        if self.target > self.cohort_size:
            raise ValueError(f"rounds.target is {self.target}, but a round asks {self.cohort_size} clients")
        if self.minimum > self.target:
            raise ValueError(f"rounds.minimum is {self.minimum}, more than rounds.target, {self.target}")
        return self

    @property
    def population(self) -> int:
        """How many clients the job has."""
        return len(self.silos) if self.silos is not None else self.data.clients or 0

    @property
    def clients(self) -> tuple[str, ...]:
        """Their names, in order."""
        if self.silos is not None:
            return self.silos
        width = len(str(self.population - 1))
        return tuple(f"client-{index:0{width}d}" for index in range(self.population))

    @property
    def cohort_size(self) -> int:
        """How many clients a round asks."""
        if isinstance(self.select, SelectRandom):
            return min(self.select.size, self.population)
        return self.population

    @property
    def target(self) -> int:
        """How many updates close a round."""
        wanted = self.select.clients if isinstance(self.select, SelectRandom) else self.cohort_size
        return self.rounds.target or wanted

    @property
    def minimum(self) -> int:
        """How many updates a round needs at its deadline."""
        return self.rounds.minimum or self.target

    def group_of(self, client: str) -> str:
        """Whose queue a client's work goes to: its pool's, or its own."""
        return self.pool or client


def parse(document: object) -> JobSpec:
    """The job that a parsed YAML document describes, or `BadInput` with one line per mistake."""
    if not isinstance(document, Mapping):
        raise BadInput("a job file is a mapping that starts with name:, model:, data:, rounds:")
    try:
        return JobSpec.model_validate(document)
    except ValidationError as error:
        raise BadInput("\n".join(explain(error))) from error


def override(document: Mapping[str, Any], assignments: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """`document` with each dotted path set to its value, as `--set rounds.count=3` does."""
    result: dict[str, Any] = copy.deepcopy(dict(document))
    for path, value in assignments:
        keys = path.split(".")
        place = result
        for depth, key in enumerate(keys[:-1], 1):
            inner = place.setdefault(key, {})
            if not isinstance(inner, dict):
                raise BadInput(f"--set {path}: {'.'.join(keys[:depth])} holds a value, not a section")
            place = inner
        place[keys[-1]] = value
    return result


def new_job_id(name: str) -> str:
    """`<name>-<6 characters>`, from an alphabet without look-alikes."""
    return f"{name}-{''.join(secrets.choice('abcdefghjkmnpqrstuvwxyz23456789') for _ in range(6))}"


def explain(error: ValidationError) -> list[str]:
    """One sentence for each mistake: where, what was found, what is allowed."""
    mistakes = error.errors(include_url=False)
    # A list all of whose items are wrong is not too short as well.
    return [_sentence(dict(mistake)) for mistake in mistakes if mistake["type"] != "too_short" or not mistake["input"]]


def _sentence(mistake: dict[str, Any]) -> str:
    location = mistake["loc"]
    path = [
        part
        for before, part in zip(("", *location), location, strict=False)
        if not (before in _CHOICES and part in _TAGS)
    ]
    where = ".".join(str(part) for part in path) or "job"
    kind, found, context = mistake["type"], mistake["input"], mistake.get("ctx", {})
    if kind == "missing":
        return f"{where}: is missing"
    if kind == "extra_forbidden":
        allowed = _keys_at(mistake["loc"])
        close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"{where}: unknown key{hint}; allowed here: {', '.join(allowed)}"
    if kind == "value_error":
        reason = str(context["error"])
        return reason if not path else f"{where}: {_show(found)} is not allowed: {reason}"
    if kind in ("union_tag_invalid", "union_tag_not_found", "unknown_name"):
        name = found.get("name") if isinstance(found, Mapping) else found
        allowed_names = context.get("expected_tags") or _CHOICES.get(str(path[-1]) if path else "")
        reason = f"allowed: {allowed_names}" if allowed_names else mistake["msg"]
        return f"{where}.name: {_show(name)} is not known; {reason}"
    if kind == "string_pattern_mismatch":
        return f"{where}: {_show(found)} is not allowed: {_PATTERNS.get(context['pattern'], mistake['msg'])}"
    reason = mistake["msg"][:1].lower() + mistake["msg"][1:]
    return f"{where}: {_show(found)} is not allowed: {reason.replace('input should', 'it should')}"


#: The sections that are chosen by name, and the names where pydantic does not give them.
_CHOICES = {"model": "", "data": "", "train": "", "select": "'all', 'random'", "partition": "'iid', 'dirichlet'"}
_TAGS = {
    "softmax",
    "mlp",
    "lenet",
    "custom",
    "digits",
    "builtin",
    "iid",
    "dirichlet",
    "all",
    "random",
}
_PATTERNS = {
    CLIENT_NAME: "letters, digits, - and _, at most 63, starting with a letter or digit",
    ATTRIBUTE: "your own is given as module:attribute, such as mypkg.nets:make",
    JobSpec.model_fields["name"].metadata[0].pattern: "lower-case letters, digits and -, at most 39",
}


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """The keys that the schema knows where an unknown one was found."""
    candidates: list[Any] = [JobSpec]
    for part in location[:-1]:
        found: list[Any] = []
        for model in candidates:
            if part in _TAGS:
                names = {m: m.model_fields["name"].default for m in (model,) if "name" in m.model_fields}
                is_custom = issubclass(model, Custom)
                matches = (
                    (part == "custom" and is_custom)
                    or (part == "builtin" and model is TrainSpec)
                    or names.get(model) == part
                )
                found += [model] if matches else []
            elif isinstance(part, str) and part in model.model_fields:
                found += _models_in(model.model_fields[part].annotation)
        candidates = found or candidates
    return sorted({key for model in candidates for key in model.model_fields})


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
