"""Small files in the formats of the data sets that are too large to have: what is in them is noise."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np


def idx(array: np.ndarray) -> bytes:
    """Bytes in the format of MNIST's files."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist_files(kind: str, train: int = 40, test: int = 10) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for name, size in (("train", train), ("t10k", test)):
        files[f"{kind}/raw/{name}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (size, 28, 28)))
        files[f"{kind}/raw/{name}-labels-idx1-ubyte"] = idx(np.arange(size) % 10)
    return files


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def leaf_file(users: dict[str, tuple[list[Any], list[Any]]]) -> bytes:
    return json.dumps(
        {
            "users": list(users),
            "num_samples": [len(y) for _, y in users.values()],
            "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
        }
    ).encode()


def writer(size: int, seed: int) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (size, 784)) / 255).tolist(), [seed % 62] * size
