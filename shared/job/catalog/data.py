"""The data sets that a job file may name, and their partitions among clients."""

from pathlib import PurePath
from typing import Annotated, Literal, Self
from unicodedata import normalize

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from shared.job.catalog.choice import Choice, Custom, Strict

Size = Annotated[StrictInt, Field(ge=1)]

# --- labels, columns and their scaling ------------------------------------------------------


def _text(value: object) -> object:
    """A label as text, as a table has it: YAML reads the label 1 as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _composed(text: str) -> str:
    """The text in Unicode's form NFC, as readers of data have it: letters that look the same are the same."""
    return normalize("NFC", text)


def _counted(value: object) -> object:
    """The labels 0 to n − 1 if `value` is a number n; any other value as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 2 <= value <= MOST_CLASSES:
            raise ValueError(f"there are 2 to {MOST_CLASSES} classes")
        return [str(label) for label in range(value)]
    return value


def _different(values: tuple[str, ...]) -> tuple[str, ...]:
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{twice[0]} is given twice")
    return values


def _several(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(labels) < 2:
        raise ValueError("a job tells two classes apart, or more")
    return _different(labels)


MOST_CLASSES = 10_000
Label = Annotated[
    str,
    BeforeValidator(_text),
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_composed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
]
Labels = Annotated[tuple[Label, ...], AfterValidator(_several)]
Numbered = Annotated[
    Labels,
    BeforeValidator(_counted),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
                {"type": "integer", "minimum": 2, "maximum": MOST_CLASSES},
            ]
        }
    ),
]
Column = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(_composed)]
Columns = Annotated[tuple[Column, ...], Field(min_length=1), AfterValidator(_different)]


class Statistics(Strict):
    """Scaling of each feature: (value − mean) / deviation, in the order of the columns."""

    mean: tuple[float, ...]
    deviation: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.mean) != len(self.deviation):
            raise ValueError(f"mean has {len(self.mean)} numbers and deviation {len(self.deviation)}")
        return self


# --- partitions -----------------------------------------------------------------------------


class Iid(Strict):
    """Shuffled, then cut into equal shares; with `size`, each client draws so many, and some examples are shared."""

    name: Literal["iid"] = "iid"
    size: Size | None = None  # examples of each client


class Dirichlet(Strict):
    """Each class is divided in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019)."""

    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(default=0.5, gt=0, le=1e6)
    min_size: Size = 2


class Classes(Strict):
    """Each client has examples of `n` classes, and each class is cut into equal shares among its clients."""

    name: Literal["classes"] = "classes"
    n: Size = 2


class Shards(Strict):
    """Sorted by class, cut into `n` shards per client, and the shards dealt out (McMahan et al. 2017)."""

    name: Literal["shards"] = "shards"
    n: Size = 2


class Quantity(Strict):
    """Shuffled, then cut into unequal shares: by the given `weights`, or by lognormal ones, exp(N(0, sigma²))."""

    name: Literal["quantity"] = "quantity"
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None  # one for each client
    sigma: float = Field(default=1.0, ge=0, le=10)
    min_size: Size = 1


class QSampler(Strict):
    """A main class per client: an example goes to clients of its class with probability `q`, else to others.

    From Fang et al. 2020; it is FLTK's q sampler.
    """

    name: Literal["q_sampler"] = "q_sampler"
    q: float = Field(default=0.5, ge=0, le=1)
    min_size: Size = 1


class Natural(Strict):
    """One share for each origin of examples: a writer, a speaker, or a value of the column or array `key`.

    Origins are sorted by name; if there are more of them than clients, the first ones are used.
    """

    name: Literal["natural"] = "natural"
    key: Column | None = None


PartitionSpec = Annotated[Iid | Dirichlet | Classes | Shards | Quantity | QSampler | Natural, Choice("data.partition")]

# --- data sets ------------------------------------------------------------------------------

Clients = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _below(path: str) -> str:
    """The path unchanged; `ValueError` if it could lead out of its folder other than by a link in there."""
    if not path.strip() or not path.isprintable() or PurePath(path).is_absolute() or ".." in PurePath(path).parts:
        raise ValueError("must be a path below FEDQ_DATA_DIR, which each trainer sets: neither absolute nor with ..")
    return path


Below = Annotated[str, AfterValidator(_below)]


class Shared(Strict):
    """A data set that is partitioned: among the `clients` that a pool plays, or among the job's silos."""

    clients: Clients | None = None  # number of a pool's clients; a job with silos names them instead
    partition: PartitionSpec = Iid()
    local_test: Fraction = 0.0  # of each client's examples, held out there for evaluation on the clients


class Held(Shared):
    """A data set that comes without a test set."""

    test_fraction: Fraction = 0.2  # of all examples, held out for the server; unused if the files have a test set


class Downloaded(Shared):
    """A data set that torchvision reads, and downloads if the network lets it."""

    folder: Below | None = None  # below FEDQ_DATA_DIR; the data set's name if left out
    download: StrictBool = True
    fraction: float = Field(default=1.0, gt=0, le=1)  # share of the training examples that is used


class Digits(Held):
    """1,797 handwritten digits of 8×8 gray pixels (UCI, bundled with scikit-learn)."""

    name: Literal["digits"] = "digits"


class Mnist(Downloaded):
    """70,000 handwritten digits of 28×28 gray pixels (LeCun et al. 1998)."""

    name: Literal["mnist"] = "mnist"


class FashionMnist(Downloaded):
    """70,000 articles of clothing, 28×28 gray pixels, 10 classes (Xiao et al. 2017)."""

    name: Literal["fashion_mnist"] = "fashion_mnist"


class Cifar10(Downloaded):
    """60,000 photographs of 32×32 pixels in 10 classes (Krizhevsky 2009)."""

    name: Literal["cifar10"] = "cifar10"


class Cifar100(Downloaded):
    """60,000 photographs of 32×32 pixels in 100 classes (Krizhevsky 2009)."""

    name: Literal["cifar100"] = "cifar100"


class Femnist(Held):
    """Handwritten characters by writer, 28×28, 62 classes, in LEAF's JSON files (Caldas et al. 2018)."""

    name: Literal["femnist"] = "femnist"
    partition: PartitionSpec = Natural()
    folder: Below | None = None


class Shakespeare(Held):
    """Lines by speaking role, the next character after 80, in LEAF's JSON files (Caldas et al. 2018)."""

    name: Literal["shakespeare"] = "shakespeare"
    partition: PartitionSpec = Natural()
    folder: Below | None = None


class InFiles(Held):
    """A data set in the user's own files: all trainers of a pool have the same ones, and each silo has others."""

    path: Below
    classes: Labels | None = None  # in their order; for a pool they can be derived from the files


class Csv(InFiles):
    """Rows of numbers with one column of labels; `path` is a file below FEDQ_DATA_DIR."""

    name: Literal["csv"] = "csv"
    label: Column = "label"
    columns: Columns | None = None  # the features, in their order; all other columns if left out
    drop: tuple[Column, ...] = ()  # columns that are not features
    scale: StrictBool = True  # scales each feature to mean 0, deviation 1: by `statistics`, else by the file's rows
    statistics: Statistics | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        columns, statistics = self.columns, self.statistics
        if columns is not None and self.label in columns:
            raise ValueError(f"columns are the features, and {self.label} is the column of labels")
        if columns is not None and self.drop:
            raise ValueError("columns names all features: leave drop out")
        if statistics is not None and not self.scale:
            raise ValueError("statistics are what features are scaled by, and scale is false: leave one of them out")
        if statistics is not None and columns is None:
            raise ValueError("statistics are in the order of columns: give columns too")
        if statistics is not None and columns is not None and len(statistics.mean) != len(columns):
            raise ValueError(f"statistics are of {len(statistics.mean)} features, and columns names {len(columns)}")
        return self


class Npz(InFiles):
    """A NumPy archive of arrays x (n, …) and y (n,); `path` is a file below FEDQ_DATA_DIR.

    Bytes are treated as pixels and divided by 255; other numbers stay as they are.
    """

    name: Literal["npz"] = "npz"
    classes: Numbered | None = None  # their number, or the names of the labels 0, 1, …
    x: str = "x"
    y: str = "y"


class Images(InFiles):
    """Images in one folder per class; `path` is the folder that holds these, below FEDQ_DATA_DIR."""

    name: Literal["images"] = "images"
    size: StrictInt = Field(default=32, ge=4, le=1024)  # pixels of each side; images are scaled to that
    grey: StrictBool = False


class CustomData(Custom):
    """Data of the user's own; `clients` is the number of shares that a pool trains (a silo brings its own data)."""

    clients: Clients | None = None
    local_test: Fraction = 0.0


DataSpec = Annotated[
    Digits | Mnist | FashionMnist | Cifar10 | Cifar100 | Femnist | Shakespeare | Csv | Npz | Images | CustomData,
    Choice("data"),
]
