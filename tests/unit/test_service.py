"""How a service starts: all servers are asked at once, again for a while, and what is wrong is told together."""

import signal
import threading
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared.errors import BadInput, FedqError, Unavailable
from shared.process import service

SOON = 60.0  #: seconds; for what takes a fraction of one, whatever else the machine has to do


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PATIENCE", 1.0)
    monkeypatch.setattr(service, "RETRY", 0.01)


def away(sentence: str = "it is away", kind: type[FedqError] = Unavailable) -> service.Check:
    def check() -> None:
        raise kind(sentence)

    return check


def test_all_servers_are_asked_at_the_same_time() -> None:
    """Each check waits for the other."""
    together = threading.Barrier(2, timeout=SOON)

    assert service.at_start(threading.Event(), {"FEDQ_A": together.wait, "FEDQ_B": together.wait})


def test_a_server_that_is_starting_is_waited_for() -> None:
    """It is asked again until it answers."""
    answers = iter([Unavailable("not yet"), BadInput("nor yet"), None])

    def check() -> None:
        if (error := next(answers)) is not None:
            raise error

    assert service.at_start(threading.Event(), {"FEDQ_A": check})


def test_a_server_that_hangs_is_not_waited_for() -> None:
    """Though its driver never returns: a name server may take minutes."""
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"^FEDQ_A: its server gives no answer in 1 s$"):
        service.at_start(threading.Event(), {"FEDQ_A": threading.Event().wait, "FEDQ_B": lambda: None})

    assert 1.0 <= time.monotonic() - began < SOON


def test_what_is_wrong_is_told_together() -> None:
    """In the order of the checks; it is a mistake where one of them is one."""
    checks = {"FEDQ_A": away("a is away"), "FEDQ_B": lambda: None, "FEDQ_C": away("c is wrong", BadInput)}
    with pytest.raises(BadInput, match=r"^a is away\nc is wrong$"):
        service.at_start(threading.Event(), checks)
    with pytest.raises(Unavailable, match=r"^a is away\nd is away$"):
        service.at_start(threading.Event(), {"FEDQ_A": away("a is away"), "FEDQ_D": away("d is away")})


def test_a_service_that_is_asked_to_stop_does_not_start() -> None:
    """Nor does it complain."""
    stop = threading.Event()

    def check() -> None:
        stop.set()
        raise Unavailable("it is away")

    assert service.at_start(stop, {"FEDQ_A": check}) is False


def test_a_mistake_of_ours_is_raised_as_it_is() -> None:
    """With its traceback, for whoever mends it."""

    def check() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        service.at_start(threading.Event(), {"FEDQ_A": check, "FEDQ_B": away()})


def test_a_variable_that_nobody_reads_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, at the start, with the one that is meant perhaps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDQ_LAESE_S", "5")
    monkeypatch.setenv("FEDQ_LOG_LEVEL", "info")
    with capture_logs() as logged:
        service.mention_unknown_settings()

    (line,) = logged
    assert (line["log_level"], line["reason"]) == (
        "warning",
        "FEDQ_LAESE_S is not read by anybody; is FEDQ_LEASE_S meant?",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_another_thread_got_stops_a_service_that_waits(number: signal.Signals) -> None:
    """Python's own handler would run when the wait of the main thread is over."""
    before = signal.getsignal(number)
    with service.until_stopped() as stop:
        got = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), number))
        threading.Timer(0.05, got.start).start()
        assert stop.wait(SOON)
    assert signal.getsignal(number) is before


def test_any_other_signal_stops_nothing() -> None:
    with service.until_stopped() as stop:
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            signal.raise_signal(signal.SIGUSR1)
            assert not stop.wait(0.05)
        finally:
            signal.signal(signal.SIGUSR1, before)
