"""The count of a message's deliveries, from headers that a broker or a stranger wrote."""

import pytest
from pika.compat import long

from shared.amqp.connection import COUNTS, deliveries


def test_a_first_delivery_has_no_header() -> None:
    assert deliveries({}) == 1


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("kind", [int, long])
def test_the_brokers_count_is_of_the_earlier_ones(name: str, kind: type[int]) -> None:
    """pika reads AMQP's 64 bits as an int of its own."""
    assert deliveries({name: kind(4)}) == 5


@pytest.mark.parametrize("count", ["abc", None, -3, 2.5, [1], {}])
def test_what_is_no_count_is_a_strangers(count: object) -> None:
    assert deliveries({COUNTS[0]: count}) == 1
