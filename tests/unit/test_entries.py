"""What is kept of an update, and what a round's updates come to."""

from services.aggregator.accepted_updates import traffic
from shared.events import BlobRef
from shared.record.rounds import AcceptedUpdate


def update(client: str, key: str, size: int, downloaded: int = 0) -> AcceptedUpdate:
    blob = BlobRef(key=key, size=size, digest="0" * 64)
    return AcceptedUpdate(client=client, blob=blob, downloaded=downloaded, examples=1)


def test_a_batchs_bytes_are_those_of_its_one_file() -> None:
    """Up and down, and as float32: what is not sent is not saved either."""
    batch = [update(f"client-{number}", "batch", 800, downloaded=400) for number in range(250)]
    alone = update("client-300", "alone", 100, downloaded=0)

    assert traffic([*batch, alone], plain=400) == {"files": 2, "up": 900, "up_plain": 800, "down": 400}
