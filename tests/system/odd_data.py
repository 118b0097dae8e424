"""A user's data set with a test set that is no number in one place."""

from typing import Any

import numpy as np


class _NanTest:
    shape = (5,)
    classes = 3

    def client(self, _name: str, index: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(index)
        return rng.normal(size=(20, 5)), rng.integers(0, 3, 20)

    def test(self) -> tuple[Any, Any]:
        x, y = self.client("", 9)
        x[3, 1] = np.nan
        return x, y


def nan_test() -> _NanTest:
    return _NanTest()
