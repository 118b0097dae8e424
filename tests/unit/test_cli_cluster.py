"""Leading other commands to a cluster: what its ConfigMap and Secret may say, and what they may not."""

import base64
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.cli.ops import cluster
from services.cli.ops.orchestrators import kubernetes
from services.cli.ops.orchestrators.kubernetes import Kubernetes
from shared.errors import BadInput


@dataclass(frozen=True)
class Place(Kubernetes):
    """A namespace without a Service; its settings are these."""

    data: dict[str, str] = field(default_factory=dict)

    def get(self, kind: str, *_words: str, **_more: float) -> Any:
        hidden = {name: base64.b64encode(value.encode()).decode() for name, value in self.data.items()}
        return {"configmap": {}, "secret": {"data": hidden}, "services": {"items": []}}[kind]


def place(**data: str) -> Place:
    return Place("lab", "research", data)


@pytest.mark.parametrize("value", ["s3://:hidden@s3", "http://[hidden", "http://s3:hidden", "hidden"])
def test_a_url_that_is_none_is_named_and_not_shown(value: str, tmp_path: Path) -> None:
    """It may hold a password."""
    with pytest.raises(BadInput, match=r"^FEDQ_S3_URL, as the cluster's .* is no URL") as refusal, ExitStack() as stack:
        cluster.reachable(place(FEDQ_S3_URL=value), tmp_path, stack)

    assert "hidden" not in str(refusal.value)


def test_settings_are_read_as_services_read_them(tmp_path: Path) -> None:
    """A Secret that is made of a file ends in a line feed, and what is empty counts as not set."""
    with ExitStack() as stack:
        found = cluster.reachable(place(FEDQ_RABBITMQ_URL="", FEDQ_S3_ACCESS_KEY="key\n"), tmp_path, stack)

    assert (found["FEDQ_RABBITMQ_URL"], found["FEDQ_S3_ACCESS_KEY"]) == ("", "key")


@pytest.mark.parametrize("value", ["${HOME}", "it's $5", "two\nlines"])
def test_a_value_that_the_file_cannot_hold_is_named(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no file is written; one without a broker's address, by whoever, is in nobody's way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kubernetes, "at", lambda _: place(FEDQ_S3_SECRET_KEY=value, FEDQ_S3_ACCESS_KEY="key"))
    cluster.FILE.parent.mkdir()
    cluster.FILE.write_text("FEDQ_LOG=json\n")

    with pytest.raises(BadInput, match=r"^\.fedq/env: FEDQ_S3_SECRET_KEY: a file of settings cannot") as refusal:
        cluster.connect(None)

    assert value not in str(refusal.value)
    assert cluster.FILE.read_text() == "FEDQ_LOG=json\n"


@pytest.mark.parametrize("value", ["amqp://[broken", "amqp://host:port", "", "elsewhere"])
def test_a_file_that_leads_nowhere_is_overwritten(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kubernetes, "at", lambda _: place(FEDQ_S3_URL="none"))
    cluster.FILE.parent.mkdir()
    cluster.FILE.write_text(f"FEDQ_AMQP_URL={value}\n")

    with pytest.raises(BadInput, match=r"^FEDQ_S3_URL, as"):  # which is looked at next
        cluster.connect(None)
