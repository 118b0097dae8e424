"""What is kept of an update, and what a round's updates come to."""

from typing import Any

from services.aggregator.accepted_updates import traffic


def entry(key: str, size: int, downloaded: int = 0) -> dict[str, Any]:
    return {"blob": {"key": key, "size": size, "digest": "0" * 64}, "downloaded": downloaded, "examples": 1}


def test_a_batchs_bytes_are_those_of_its_one_file() -> None:
    """Up and down, and as float32: what is not sent is not saved either."""
    batch = {f"client-{number}": entry("batch", 800, downloaded=400) for number in range(250)}
    alone = {"client-300": entry("alone", 100, downloaded=0)}

    assert traffic({**batch, **alone}, plain=400) == {"files": 2, "up": 900, "up_plain": 800, "down": 400}
