"""How one data set becomes many clients: disjoint shares that cover it, the same for the same seed.

Pure.
"""

import numpy as np
import numpy.typing as npt

from shared.errors import BadInput

Indices = npt.NDArray[np.int64]

REDRAWS = 1000  #: of a split whose smallest share is below `min_size`, before giving up


def iid(size: int, clients: int, seed: int) -> list[Indices]:
    """Shuffles `size` examples and cuts them into `clients` shares whose sizes differ by one at most."""
    if clients > size:
        raise BadInput(f"data.clients is {clients}, but there are {size} examples to share")
    order = np.random.default_rng(seed).permutation(size)
    return [np.sort(share) for share in np.array_split(order, clients)]


def dirichlet(labels: Indices, clients: int, alpha: float, min_size: int, seed: int) -> list[Indices]:
    """Deals the examples of each class out in proportions drawn from Dirichlet(alpha, …, alpha).

    `labels` has shape (n,). The smaller `alpha`, the fewer classes a client sees; a large one comes near to `iid`.
    Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data distribution for federated visual
    classification", in the form of Yurochkin et al. 2019, which shares out every example. Drawn again until each
    client has `min_size` examples, and `BadInput` where that does not come about.
    """
    if clients * min_size > labels.size:
        raise BadInput(
            f"data.partition.min_size is {min_size}: {clients} clients would need {clients * min_size} examples, "
            f"and there are {labels.size}"
        )
    rng = np.random.default_rng(seed)
    classes = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    totals = np.array([members.size for members in classes])
    for _ in range(REDRAWS):
        proportions = rng.dirichlet(np.full(clients, alpha), size=len(classes))
        cuts = np.rint(np.cumsum(proportions, axis=1) * totals[:, None]).astype(np.int64)
        cuts[:, -1] = totals  # whatever the rounding: every example has an owner
        sizes = np.diff(cuts, axis=1, prepend=0).sum(axis=0)
        if sizes.min() >= min_size:
            pieces = [np.split(members, cut[:-1]) for members, cut in zip(classes, cuts, strict=True)]
            return [np.sort(np.concatenate(share)) for share in zip(*pieces, strict=True)]
    raise BadInput(
        f"data.partition: {REDRAWS} draws with alpha {alpha:g} left some of the {clients} clients with fewer than "
        f"min_size {min_size} of the {labels.size} examples; raise alpha, or lower min_size or data.clients"
    )
