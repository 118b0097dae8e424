"""Prometheus for tests and demonstrations, either installed or unpacked from the system's package without root."""

import functools
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from deploy.native.apt import Apt
from deploy.native.server import Server
from deploy.native.state import StackState
from deploy.native.unpacked import system, unpacked
from shared.errors import BadInput, Unavailable

OBSERVE = Path(__file__).parents[1] / "compose/observe"  #: the configuration that every stack shares
REMEDY = "Prometheus; install prometheus 2.42 or newer"

# A proxy from the environment cannot reach 127.0.0.1.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class PrometheusPrograms:
    prometheus: Path
    promtool: Path


@functools.cache
def find() -> PrometheusPrograms:
    """Finds the programs; fetches them once per user if they are not installed, or raises `Unavailable`."""
    server, tool = shutil.which("prometheus"), shutil.which("promtool")
    if server is not None and tool is not None:
        return PrometheusPrograms(Path(server), Path(tool))
    tree = unpacked(f"prometheus-{system()}", "Prometheus (19 MB)", _download)
    return PrometheusPrograms(tree / "usr/bin/prometheus", tree / "usr/bin/promtool")


def _download(folder: Path) -> list[Path]:
    apt = Apt(folder, REMEDY)
    apt.run("apt-get", "-q", "download", "prometheus")
    return list(apt.archives.glob("prometheus_*.deb"))


class Prometheus(Server):
    """Prometheus server configured by `deploy/compose/observe/prometheus.yml` with `changes` applied to its text."""

    name = "prometheus"
    port_names = ("web",)

    def __init__(self, directory: Path, changes: Mapping[str, str], *, dies_with_parent: bool = True) -> None:
        super().__init__(StackState(directory), dies_with_parent=dies_with_parent)
        self._changes = changes

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.state.ports['web']}"

    def configure(self) -> None:
        text = (OBSERVE / "prometheus.yml").read_text()
        for old, new in self._changes.items():
            if old not in text:
                raise BadInput(f"{OBSERVE / 'prometheus.yml'} has no {old} to be changed into {new}")
            text = text.replace(old, new)
        (self.directory / "prometheus.yml").write_text(text)
        shutil.copy(OBSERVE / "rules.yml", self.directory)

    def launch(self) -> None:
        self.state.choose_ports(self.port_names)
        super().launch()

    def command(self) -> Sequence[str | Path]:
        return [
            find().prometheus,
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{self.state.ports['web']}",
        ]

    def serves(self) -> bool:
        try:
            with _direct.open(f"{self.url}/-/ready", timeout=2):
                return True
        except OSError:
            return False

    def ask(self, path: str, **parameters: Any) -> Any:
        """Queries the API and returns the answer's `data`; `BadInput` with the reason if the query is refused."""
        try:
            with _direct.open(f"{self.url}/api/v1/{path}?{urlencode(parameters, doseq=True)}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            refusal = json.load(error)
            raise BadInput(f"Prometheus refuses {path} {parameters}: {refusal['error']}") from None
        except OSError as error:
            raise Unavailable(f"Prometheus at {self.url} does not answer: {error}") from None
