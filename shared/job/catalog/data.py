"""The data sets that a job file may name, and how they are shared out among clients."""

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

# --- labels, columns and what they are scaled by --------------------------------------------


def _text(value: object) -> object:
    """A whole number as a table has it: YAML reads the label 1 as one."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _composed(text: str) -> str:
    """Letters that look the same are the same, as readers of data have it."""
    return normalize("NFC", text)


def _counted(value: object) -> object:
    """The labels 0 to n − 1, where `value` is n."""
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
    """Shuffled, then cut into equal shares; with `size`, each client draws so many of all, and some are shared."""

    name: Literal["iid"] = "iid"
    size: Size | None = None  # examples of each client


class Dirichlet(Strict):
    """Each class is dealt out in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019)."""

    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(default=0.5, gt=0, le=1e6)
    min_size: Size = 2


class Classes(Strict):
    """Each client has examples of `n` classes, and each class is cut into equal shares among those that have it."""

    name: Literal["classes"] = "classes"
    n: Size = 2


class Shards(Strict):
    """Sorted by class, cut into `n` shards a client, and the shards dealt out (McMahan et al. 2017)."""

    name: Literal["shards"] = "shards"
    n: Size = 2


class Quantity(Strict):
    """Shuffled, then cut into unequal shares: by given `weights`, or by lognormal ones, exp(N(0, sigma²))."""

    name: Literal["quantity"] = "quantity"
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None  # one for each client
    sigma: float = Field(default=1.0, ge=0, le=10)
    min_size: Size = 1


class QSampler(Strict):
    """Clients have a main class each; an example goes to those of its class with probability `q`, else to others.

    Fang et al. 2020; FLTK's q sampler.
    """

    name: Literal["q_sampler"] = "q_sampler"
    q: float = Field(default=0.5, ge=0, le=1)
    min_size: Size = 1


class Natural(Strict):
    """By whose the examples are: a writer's, a speaker's, or the values of the column or array `key`.

    Sorted by name; with more of these than clients, the first ones are used.
    """

    name: Literal["natural"] = "natural"
    key: Column | None = None


PartitionSpec = Annotated[Iid | Dirichlet | Classes | Shards | Quantity | QSampler | Natural, Choice("data.partition")]

# --- data sets ------------------------------------------------------------------------------

Clients = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _below(path: str) -> str:
    """The path as it is, where it cannot lead out of the folder that it is relative to (but by a link in there)."""
    if not path.strip() or not path.isprintable() or PurePath(path).is_absolute() or ".." in PurePath(path).parts:
        raise ValueError("must be a path below FEDQ_DATA_DIR, which each trainer sets: neither absolute nor with ..")
    return path


Below = Annotated[str, AfterValidator(_below)]


class Shared(Strict):
    """A data set that is shared out: among `clients` that a pool plays, or among the job's silos."""

    clients: Clients | None = None  # of a pool; silos are as many as the job names
    partition: PartitionSpec = Iid()
    local_test: Fraction = 0.0  # of each client's examples, held out there for evaluation on the clients


class Held(Shared):
    """A data set without a test set of its own."""

    test_fraction: Fraction = 0.2  # of all examples, held out for the server; unused where the files have a test set


class Downloaded(Shared):
    """A data set that torchvision reads, and downloads where the network lets it."""

    folder: Below | None = None  # below FEDQ_DATA_DIR; by its name where left out
    download: StrictBool = True
    fraction: float = Field(default=1.0, gt=0, le=1)  # of the training examples that are used


class Digits(Held):
    """1,797 handwritten digits of 8×8 grey pixels (UCI, carried by scikit-learn)."""

    name: Literal["digits"] = "digits"


class Mnist(Downloaded):
    """70,000 handwritten digits of 28×28 grey pixels (LeCun et al. 1998)."""

    name: Literal["mnist"] = "mnist"


class FashionMnist(Downloaded):
    """70,000 articles of clothing, 28×28 grey pixels, 10 classes (Xiao et al. 2017)."""

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
    """The next character after 80 of them, by speaking role, in LEAF's JSON files (Caldas et al. 2018)."""

    name: Literal["shakespeare"] = "shakespeare"
    partition: PartitionSpec = Natural()
    folder: Below | None = None


class InFiles(Held):
    """A data set in files of one's own: all trainers of a pool have the same ones, and each silo has its own."""

    path: Below
    classes: Labels | None = None  # in their order; of a pool's files they can be told by what is there


class Csv(InFiles):
    """Rows of numbers with one column of labels; `path` is a file below FEDQ_DATA_DIR."""

    name: Literal["csv"] = "csv"
    label: Column = "label"
    columns: Columns | None = None  # the features, in their order; all that are left where it is left out
    drop: tuple[Column, ...] = ()  # columns that are no features
    scale: StrictBool = True  # each feature to mean 0 and deviation 1: by `statistics`, else by all rows of the file
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

    Bytes are taken for pixels and divided by 255; other numbers stay as they are.
    """

    name: Literal["npz"] = "npz"
    classes: Numbered | None = None  # how many, or the names of 0, 1, …
    x: str = "x"
    y: str = "y"


class Images(InFiles):
    """A folder for each class with images in it; `path` is the folder of these, below FEDQ_DATA_DIR."""

    name: Literal["images"] = "images"
    size: StrictInt = Field(default=32, ge=4, le=1024)  # pixels of a side, to which each image is scaled
    grey: StrictBool = False


class CustomData(Custom):
    """The user's own data; `clients` is how many shares a pool trains (a silo brings its own)."""

    clients: Clients | None = None
    local_test: Fraction = 0.0


DataSpec = Annotated[
    Digits | Mnist | FashionMnist | Cifar10 | Cifar100 | Femnist | Shakespeare | Csv | Npz | Images | CustomData,
    Choice("data"),
]
