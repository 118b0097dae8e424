"""What an encoding costs and saves: `python -m benchmarks.compression --mb 250 --json`.

One vector of normal values in every encoding, in one process and thread: encoding it with error feedback, as a trainer
does; checking and folding what was received tile by tile, as the aggregator does. MB/s are of float32 values (10⁶
bytes) and of processor time, which neighbours on the same cores disturb less; ratios are to float32 within the run.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from shared.aggregation import fold
from shared.aggregation.compression.encoding import encode_with_feedback
from shared.aggregation.compression.encodings import encoding_of
from shared.aggregation.fold import Fold, Grid
from shared.aggregation.weights import Flat, layout_of
from shared.job.catalog.compression import Bf16, EncodingSpec, Int4, Int8, TopK

SPECS: tuple[EncodingSpec | None, ...] = (None, Bf16(), Int8(), Int4(), TopK())
GRID = Grid(max_abs=16.0, max_weight=2**20, updates=1000)
TIMES = 3  #: that each is done; the fastest counts


def measure(mb: float) -> list[dict[str, Any]]:
    """The figures of each encoding for a vector of `mb` MB."""
    size = max(1, int(mb * 1e6 / 4))
    values = np.random.default_rng(0).normal(0, 0.01, size).astype(np.float32)
    residual, running = np.zeros(size, np.float32), Fold(size, GRID)
    figures: list[dict[str, Any]] = []
    for spec in SPECS:
        found = one(spec, values, residual, running)
        plain = figures[0] if figures else found
        found["times_smaller"] = round(plain["bytes"] / found["bytes"], 2)
        for name in ("encode", "feedback", "fold"):
            found[f"{name}_to_plain"] = round(found[f"{name}_mb_s"] / plain[f"{name}_mb_s"], 2)
        figures.append(found)
    return figures


def one(spec: EncodingSpec | None, values: Flat, residual: Flat, running: Fold) -> dict[str, Any]:
    encoding = encoding_of(spec, layout_of({"w": ("F32", (values.size,))}))
    file = encoding.layout.empty_file()
    residual.fill(0)
    expanded = np.empty_like(values)

    def receive() -> None:
        fold.check(encoding.tiles(file), 1, GRID)
        running.add(encoding.tiles(file), 1)

    def rate(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(TIMES):
            began = time.process_time()
            work()
            seconds.append(time.process_time() - began)
        return round(values.nbytes / 1e6 / min(seconds), 1)

    encode = rate(lambda: encoding.encode(values, file))
    encoding.decode_into(file, expanded)
    expanded -= values
    error = float(np.linalg.norm(expanded) / np.linalg.norm(values))
    return {
        "encoding": spec.name if spec else "float32",
        "bytes": file.nbytes,
        "error": round(error, 4),  # of what is decoded, to the norm of what was encoded
        "encode_mb_s": encode,
        "fold_mb_s": rate(receive),
        "feedback_mb_s": rate(lambda: encode_with_feedback(encoding, values, residual, file)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mb", type=float, default=250, help="MB of float32 values (10⁶ bytes)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.mb)
    if arguments.json:
        print(json.dumps({"mb": arguments.mb, "encodings": figures}))
        return
    print(f"{arguments.mb:g} MB of float32; MB/s of these, and times float32's")
    print(f"{'':8}{'smaller':>9}{'error':>8}{'encode':>16}{'with feedback':>16}{'check + fold':>16}")
    for row in figures:
        rates = "".join(
            f"{row[f'{name}_mb_s']:>8.0f} ({row[f'{name}_to_plain']:>4.2f}×)" for name in ("encode", "feedback", "fold")
        )
        print(f"{row['encoding']:8}{row['times_smaller']:>8.2f}×{row['error']:>8.4f}{rates}")


if __name__ == "__main__":
    main()
