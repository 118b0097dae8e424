"""Plots of learning curves and of the clients' data; no other module imports matplotlib."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from services.cli.report import history
from services.cli.report.history import PastRound
from shared.errors import BadInput

TEST, CLIENTS, HELD_OUT, MEAN, WORST = "#1f5f9e", "#d9822b", "#3d8f5f", "#7fb89a", "#a04a4a"
Counts = npt.NDArray[np.int64]  # shape (clients, classes)
Colour = tuple[float, float, float, float]


@dataclass(frozen=True)
class Curve:
    """Line of one metric in a panel; its value belongs to the model of `ago` rounds before the reporting round."""

    metric: str
    label: str
    colour: str
    ago: int = 0


#: Panels of the model itself. The clients' own data measures the model that the round began with, hence `ago=1`.
MODEL = {
    name: [
        Curve(name, "test set", TEST),
        Curve(f"client_{name}", "clients' own data", CLIENTS, ago=1),
        Curve(f"local_{name}", "clients' held-out data", HELD_OUT),
        Curve(f"local_{name}_mean", "the same, mean over clients", MEAN),
        Curve(f"local_{name}_worst_decile", "the same, worst tenth of the clients", WORST),
    ]
    for name in ("loss", "accuracy")
}
ACROSS = 3  #: panels side by side
MOST = 24  #: panels in a picture

NAMED = 40  #: clients at most for names below the bars
APART = 150  #: clients at most for gaps between the bars
DRAWN = 2000  #: clients at most that remain distinguishable in a picture
LEGEND = 20  #: classes at most that remain distinguishable in a legend


def learning_curve(job: str, rounds: list[PastRound], file: Path) -> None:
    """Draws the metrics of every round: the model's loss and accuracy, and each other metric on separate axes."""
    drawn = panels(rounds)
    across = min(ACROSS, len(drawn))
    down = -(-len(drawn) // across)
    figure = Figure(figsize=(5 * across, 4.2 * down), layout="constrained")
    figure.suptitle(job, fontweight="bold")
    places = figure.subplots(down, across, squeeze=False).flatten()
    for axes, (name, lines) in zip(places, drawn.items(), strict=False):
        _draw(axes, name, lines, rounds)
    for axes in places[len(drawn) :]:
        axes.remove()
    figure.savefig(file, format="png", dpi=150)


def panels(rounds: Sequence[PastRound]) -> dict[str, list[Curve]]:
    """The panels of a learning curve by title, with the lines that have points; `BadInput` if there are none."""
    reported = history.reported(rounds)
    known = {title: [line for line in lines if line.metric in reported] for title, lines in MODEL.items()}
    of_model = {line.metric for lines in known.values() for line in lines}
    own = {name: [Curve(name, "", TEST)] for name in reported if name not in of_model}
    found = {title: lines for title, lines in {**known, **own}.items() if lines}
    if not found:
        raise BadInput("no round has reported any metric: there is nothing to draw")
    return dict(itertools.islice(found.items(), MOST))


def _draw(axes: Axes, title: str, lines: Sequence[Curve], rounds: Sequence[PastRound]) -> None:
    for line in lines:
        points = [(past.number - line.ago, past.figures[line.metric]) for past in rounds if line.metric in past.figures]
        axes.plot(
            *zip(*points, strict=True), label=line.label, color=line.colour, marker="o", markersize=3.5, linewidth=1.6
        )
    axes.set_xlabel("round")
    axes.set_ylabel(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if title in MODEL:
        axes.set_ylim(bottom=0, top=1 if title == "accuracy" else None)
        axes.legend(frameon=False)


def shares(job: str, classes: Sequence[str], clients: Mapping[str, Sequence[int]], file: Path) -> None:
    """Draws a stacked bar for each client: its height is the number of examples, its parts are the classes."""
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
    if len(counts) > APART:  # too many single bars are slow to draw, so each class becomes one shape
        places = np.arange(len(counts) + 1) - 0.5
        steps = np.vstack([counts, counts[-1:]])
        axes.stackplot(places, steps.T, labels=classes, colors=colours, step="post", linewidth=0)
        return
    floor = np.zeros(len(counts))
    for name, column, colour in zip(classes, counts.T, colours, strict=True):
        axes.bar(range(len(counts)), column, bottom=floor, width=0.8, label=name, color=colour)
        floor += column
