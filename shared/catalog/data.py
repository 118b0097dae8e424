"""The data sets that a job file may name, and how they are shared out among clients."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt

from shared.catalog.choice import Choice, Custom, Strict

Size = Annotated[StrictInt, Field(ge=1)]

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
    key: str | None = None


PartitionSpec = Annotated[Iid | Dirichlet | Classes | Shards | Quantity | QSampler | Natural, Choice("data.partition")]

# --- data sets ------------------------------------------------------------------------------

Clients = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


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

    folder: str | None = None  # below FEDQ_DATA_DIR; by its name where left out
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
    folder: str | None = None


class Shakespeare(Held):
    """The next character after 80 of them, by speaking role, in LEAF's JSON files (Caldas et al. 2018)."""

    name: Literal["shakespeare"] = "shakespeare"
    partition: PartitionSpec = Natural()
    folder: str | None = None


class Csv(Held):
    """Rows of numbers with one column of labels; `path` is a file below FEDQ_DATA_DIR."""

    name: Literal["csv"] = "csv"
    path: str
    label: str = "label"  # the column
    drop: tuple[str, ...] = ()  # columns that are no features
    scale: StrictBool = True  # each feature to mean 0 and deviation 1


class Npz(Held):
    """A NumPy archive of arrays x (n, …) and y (n,); `path` is a file below FEDQ_DATA_DIR.

    Bytes are taken for pixels and divided by 255; other numbers stay as they are.
    """

    name: Literal["npz"] = "npz"
    path: str
    x: str = "x"
    y: str = "y"


class Images(Held):
    """A folder for each class with images in it; `path` is the folder of these, below FEDQ_DATA_DIR."""

    name: Literal["images"] = "images"
    path: str
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
