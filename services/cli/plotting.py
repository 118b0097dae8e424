"""Pictures: the learning curve, and who has what; the only module that knows matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from services.cli.history import PastRound

TEST, CLIENTS, HELD_OUT = "#1f5f9e", "#d9822b", "#3d8f5f"
Counts = npt.NDArray[np.int64]  # (clients, classes)
Colour = tuple[float, float, float, float]

NAMED = 40  #: clients whose names have room below their bars
APART = 150  #: clients whose bars have room between them
DRAWN = 2000  #: clients that a picture can tell apart
LEGEND = 20  #: classes that a legend can


def learning_curve(job: str, rounds: list[PastRound], file: Path) -> None:
    """Draws loss and accuracy of the model after each round, on the test set and on the clients' own data."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(job, fontweight="bold")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        tested = [(past.number, past.figures[name]) for past in rounds if name in past.figures]
        # What the clients measured is the model that the round began with: that of the round before.
        owned = [
            (past.number - 1, past.figures[f"client_{name}"]) for past in rounds if f"client_{name}" in past.figures
        ]
        held_out = [(past.number, past.figures[f"local_{name}"]) for past in rounds if f"local_{name}" in past.figures]
        for label, points, colour in (
            ("test set", tested, TEST),
            ("clients' own data", owned, CLIENTS),
            ("clients' held-out data", held_out, HELD_OUT),
        ):
            if points:
                axes.plot(
                    *zip(*points, strict=True), label=label, color=colour, marker="o", markersize=3.5, linewidth=1.6
                )
        axes.set_xlabel("round")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0, top=1 if name == "accuracy" else None)
        if tested or owned or held_out:
            axes.legend(frameon=False)
    figure.savefig(file, format="png", dpi=150)


def shares(job: str, classes: Sequence[str], clients: Mapping[str, Sequence[int]], file: Path) -> None:
    """Draws a bar for each client, as high as it has examples, its classes one above the other."""
    names = list(clients)[:DRAWN]
    counts: Counts = np.array([clients[name] for name in names])
    figure = Figure(figsize=(min(16, max(8, 0.3 * len(names))), 4.8), layout="constrained")
    axes = figure.subplots()
    few = len(classes) <= LEGEND
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"] if few else colormaps["turbo"]
    colours: list[Colour] = [palette(index if few else index / (len(classes) - 1)) for index in range(len(classes))]
    _stack(axes, classes, counts, colours)
    more = f", the first {DRAWN} of {len(clients)}" if len(clients) > DRAWN else ""
    axes.set_title(f"{job}: {len(clients)} clients{more}", fontweight="bold")
    axes.set_ylabel("examples")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.margins(y=0.03)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    else:
        axes.set_xlabel("client, by number")
    if few:
        axes.legend(title="class", frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, reverse=True)
    else:
        scale = ScalarMappable(Normalize(0, len(classes) - 1), palette)
        figure.colorbar(scale, ax=axes, label="class, by number", pad=0.01)
    figure.savefig(file, format="png", dpi=150)


def _stack(axes: Axes, classes: Sequence[str], counts: Counts, colours: Sequence[Colour]) -> None:
    if len(counts) > APART:  # one shape for each class, where single bars would be too many to draw
        places = np.arange(len(counts) + 1) - 0.5
        steps = np.vstack([counts, counts[-1:]])
        axes.stackplot(places, steps.T, labels=classes, colors=colours, step="post", linewidth=0)
        return
    floor = np.zeros(len(counts))
    for name, column, colour in zip(classes, counts.T, colours, strict=True):
        axes.bar(range(len(counts)), column, bottom=floor, width=0.8, label=name, color=colour)
        floor += column
