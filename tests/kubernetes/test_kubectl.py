"""Which kubectl builds the manifests: one that is new enough, or Debian's."""

import shutil
from pathlib import Path

import pytest

from deploy.native import apt, kubectl
from shared.errors import Unavailable


def program(folder: Path, prints: str) -> Path:
    file = folder / "kubectl"
    file.write_text(f"#!/bin/sh\ncat <<END\n{prints}\nEND\n")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("prints", "is_"),
    [
        ('{"clientVersion": {"gitVersion": "v1.20.2"}}', (1, 20)),  # Debian 12's
        ('{"clientVersion": {"gitVersion": "v1.32.3+ds"}, "kustomizeVersion": "v5.5.0"}', (1, 32)),  # Debian 13's
        ('{"clientVersion": {"gitVersion": "v1.32.4-dispatcher"}}', (1, 32)),
        ("error: unknown flag", (0, 0)),
    ],
)
def test_a_program_says_its_version(tmp_path: Path, prints: str, is_: tuple[int, int]) -> None:
    assert kubectl.version(program(tmp_path, prints)) == is_


def test_what_was_found_is_new_enough() -> None:
    assert kubectl.version(kubectl.find()) >= kubectl.OLDEST


def test_an_old_one_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched before is taken, without asking anybody; where nothing can be fetched, a sentence says so."""
    program(tmp_path, '{"clientVersion": {"gitVersion": "v1.20.2"}}')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("FEDQ_NATIVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kubectl, "KEYRING", tmp_path / "none")
    find = kubectl.find.__wrapped__

    with pytest.raises(Unavailable, match=r"install 1\.27 or newer"):
        find()

    (fetched,) = [lock.with_suffix("") for lock in (tmp_path / "cache").glob("kubectl-*.lock")]
    (fetched / "usr/bin").mkdir(parents=True)
    assert find() == fetched / "usr/bin/kubectl"


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt")
def test_mirrors_are_where_the_system_has_its_packages_from() -> None:
    """Each once, and as addresses that other releases are below as well."""
    found = apt.mirrors()

    assert found
    assert len(set(found)) == len(found)
    assert all(":" in mirror and "/dists" not in mirror for mirror in found)
