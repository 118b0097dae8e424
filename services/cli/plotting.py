"""The learning curve as a picture; the only module that knows matplotlib."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from services.cli.history import PastRound

TEST, CLIENTS = "#1f5f9e", "#d9822b"


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
        for label, points, colour in (("test set", tested, TEST), ("clients' own data", owned, CLIENTS)):
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
        if tested or owned:
            axes.legend(frameon=False)
    figure.savefig(file, format="png", dpi=150)
