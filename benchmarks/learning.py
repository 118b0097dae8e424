"""What the strategies, encodings and timings are worth: `python -m benchmarks.learning drift attack --seeds 3`.

Each suite runs whole jobs on the real services, on the digits that scikit-learn carries, and prints a table.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.federation import Outcome, federation, run
from deploy.native import services
from deploy.native.stack import Stack
from shared.job import job_spec

Row = dict[str, Any]
TARGET = 0.95


def job(name: str, seed: int, **changes: Any) -> dict[str, Any]:
    """The job that all suites vary."""
    return {
        "name": name,
        "seed": seed,
        "model": {"name": "mlp", "hidden": [64]},
        "data": {"name": "digits", "clients": 20, "partition": {"name": "iid"}},
        "train": {"epochs": 5, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05}},
        "select": {"name": "random", "clients": 10},
        "rounds": {"count": 20, "deadline": "2m"},
        "pool": services.POOL,
    } | changes


def repeated(stack: Stack, name: str, seeds: int, *, may_fail: bool = False, **changes: Any) -> list[Outcome]:
    """The same job under so many seeds."""
    return [run(stack, job_spec.parse(job(name, 1 + seed, **changes)), may_fail=may_fail) for seed in range(seeds)]


def middle(values: list[Any], digits: int = 3) -> Any:
    """Their median, and the values themselves; `-` stands for what was not reached."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return " ".join("-" if value is None else f"{value:g}" for value in values)
    return round(statistics.median(known), digits)


# --- suites -----------------------------------------------------------------------------------

DRIFT: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox, mu 0.1": {"fedprox": {"mu": 0.1}},
    "fedprox, mu 1": {"fedprox": {"mu": 1.0}},
    "scaffold": {"strategy": {"name": "scaffold"}},
    "scaffold, by examples": {"strategy": {"name": "scaffold", "weights": "examples"}},
    "fednova": {"strategy": {"name": "fednova"}},
    "fedavgm": {"strategy": {"name": "fedavgm", "momentum": 0.7}},
    "fedadam": {"strategy": {"name": "fedadam", "lr": 0.03}},
    "fedyogi": {"strategy": {"name": "fedyogi", "lr": 0.03}},
    "fedadagrad": {"strategy": {"name": "fedadagrad", "lr": 0.1}},
}


def drift(seeds: int) -> list[Row]:
    """Rounds to the target on a split where each client has one or two digits."""
    rows = []
    with federation() as stack:
        for name, own in DRIFT.items():
            fedprox, strategy = own.get("fedprox"), own.get("strategy", {"name": "fedavg"})
            found = repeated(
                stack,
                "drift",
                seeds,
                data={"name": "digits", "clients": 20, "partition": {"name": "dirichlet", "alpha": 0.1}},
                train={
                    "epochs": 5,
                    "batch_size": 16,
                    "optimizer": {"name": "sgd", "lr": 0.05},
                    "fedprox": fedprox,
                },
                strategy=strategy,
                rounds={"count": 80, "deadline": "2m"},
                evaluate={"every": 1, "stop": {"target": TARGET}},
            )
            rows.append(
                {
                    "strategy": name,
                    "rounds to 0.95": [one.rounds_to(TARGET) for one in found],
                    "best accuracy": [max(f["accuracy"] for f in one.figures.values()) for one in found],
                }
            )
            say(rows[-1])
    return rows


ROBUST: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "norm_clip": {"name": "norm_clip", "max_norm": 1.0},
    "median": {"name": "median"},
    "trimmed_mean": {"name": "trimmed_mean", "beta": 0.2},
    "krum": {"name": "krum", "byzantine": 4},
    "multikrum": {"name": "multikrum", "byzantine": 4},
    "bulyan": {"name": "bulyan", "byzantine": 4},
}


def attack(seeds: int) -> list[Row]:
    """Accuracy after 15 rounds, or the last before training diverged: 4 of 20 clients send -10 times their update."""
    rows = []
    with federation() as stack:
        for name, strategy in ROBUST.items():
            found = repeated(
                stack,
                "attack",
                seeds,
                may_fail=True,
                strategy=strategy,
                select={"name": "all"},
                rounds={"count": 15, "deadline": "2m"},
                train={"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
                simulate={"attack": {"name": "scaled_update", "fraction": 0.2, "factor": -10.0}},
            )
            rows.append({"strategy": name, "accuracy": [one.accuracy for one in found]})
            say(rows[-1])
    return rows


def straggler(seeds: int) -> list[Row]:
    """Seconds to the target with one client that takes twenty times as long, eight of them on eight trainers."""
    rows = []
    slow = {"speed": {"name": "ratios", "ratios": {"client-0": 20.0}}}
    base: dict[str, Any] = {
        "data": {"name": "digits", "clients": 8, "partition": {"name": "iid"}},
        "select": {"name": "all"},
        "train": {"epochs": 5, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.02}},
        "simulate": slow,
        "evaluate": {"every": 1, "stop": {"target": TARGET}},
    }
    buffered = {"name": "fedbuff", "buffer_size": 6, "max_staleness": 20}
    with federation(trainers=8) as stack:
        for strategy in ({"name": "fedavg"}, buffered):
            rounds = {"count": 150, "deadline": "2m"}
            found = repeated(stack, "straggler", seeds, strategy=strategy, rounds=rounds, **base)
            rows.append(
                {
                    "strategy": strategy["name"],
                    "rounds to 0.95": [one.rounds_to(TARGET) for one in found],
                    "seconds to 0.95": [round(one.seconds_to(TARGET) or 0, 2) or None for one in found],
                }
            )
            say(rows[-1])
    return rows


def compression(seeds: int) -> list[Row]:
    """Accuracy and bytes up, each update encoded, against float32."""
    rows: list[Row] = []
    encodings: dict[str, Any] = {
        "float32": None,
        "bf16": {"name": "bf16"},
        "int8": {"name": "int8"},
        "int4": {"name": "int4"},
        "topk 1 %": {"name": "topk", "ratio": 0.01},
    }
    with federation() as stack:
        for name, update in encodings.items():
            found = repeated(
                stack,
                "compress",
                seeds,
                compress={"update": update},
                model={"name": "mlp", "hidden": [256]},
                select={"name": "all"},
                rounds={"count": 30, "deadline": "2m"},
                train={"epochs": 5, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
            )
            bytes_up = statistics.mean(one.bytes_up for one in found)
            rows.append(
                {
                    "encoding": name,
                    "accuracy": [one.accuracy for one in found],
                    "bytes up": round(bytes_up),
                    "times fewer": round(rows[0]["bytes up"] / bytes_up, 2) if rows else 1.0,
                }
            )
            say(rows[-1])
    return rows


def many(seeds: int) -> list[Row]:
    """Seconds a round: 2,000 clients, 200 of them in each round, softmax, two slots."""
    rows = []
    with federation() as stack:
        for each in (1, 50):
            found = repeated(
                stack,
                "many",
                seeds,
                model={"name": "softmax"},
                data={"name": "digits", "clients": 2000, "partition": {"name": "iid", "size": 30}},
                train={"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05}},
                select={"name": "random", "clients": 200},
                rounds={"count": 10, "deadline": "2m", "clients_per_task": each},
            )
            seconds = [value for one in found for value in one.seconds]
            rows.append(
                {
                    "clients a task": each,
                    "seconds a round, p50": round(statistics.median(seconds), 3),
                    "slowest": round(max(seconds), 3),
                    "accuracy": [one.accuracy for one in found],
                }
            )
            say(rows[-1])
    return rows


SUITES: dict[str, Callable[[int], list[Row]]] = {
    suite.__name__: suite for suite in (drift, attack, straggler, compression, many)
}


def say(row: Row) -> None:
    print("   ", {key: middle(value) if isinstance(value, list) else value for key, value in row.items()}, row,
          file=sys.stderr, flush=True)  # fmt: skip


def show(rows: list[Row]) -> None:
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        cells = []
        for value in row.values():
            if isinstance(value, list):
                each = ", ".join("–" if one is None else f"{one:.4g}" for one in value)
                cells.append(each)
            else:
                cells.append(str(value))
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("suites", nargs="*", default=list(SUITES), help=", ".join(SUITES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", metavar="WORD", default="", help="rows whose name begins so, of the suite drift")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    if options.seeds < 1:
        parser.error("--seeds is at least 1")
    for name in [name for name in DRIFT if not name.startswith(options.only)]:
        del DRIFT[name]
    results = {name: SUITES[name](options.seeds) for name in options.suites}
    if options.json:
        print(json.dumps(results))
        return
    for name, rows in results.items():
        print(f"\n{SUITES[name].__doc__}\n")
        show(rows)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
