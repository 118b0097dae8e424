"""Virtual environment for fedq: `python3 -m deploy.native.bootstrap .venv stack`, or `all,dev` instead of `stack`.

This script uses only the standard library, because it runs before anything is installed. An existing environment of the
same Python is kept and completed. Debian's Python may lack ensurepip.
"""

import importlib.util
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from deploy.native.apt import Apt
from deploy.native.installing import install
from shared.errors import FedqError

REMEDY = "pip for this Python; install python3-venv"
WHAT = {"stack": "fedq and what it runs on", "all,dev": "fedq with all that it can use, and the tools for its tests"}


def main(directory: Path, extras: str) -> None:
    if not _is_ours(directory):
        print(f"Making {directory} with Python {sys.version.split()[0]} ...", file=sys.stderr, flush=True)
        _make(directory)
    what = f"{WHAT.get(extras, f'fedq[{extras}]')} into {directory}"
    install(directory, what, "--constraint", "constraints.txt", "--editable", f".[{extras}]")


def _is_ours(directory: Path) -> bool:
    """Returns whether the environment has pip and belongs to the Python that runs this script."""
    asked = "import sys, pip; print(sys.base_prefix, sys.version)"
    try:
        done = subprocess.run([directory / "bin/python", "-c", asked], check=False, capture_output=True, text=True)
    except OSError:
        return False
    return done.stdout == f"{sys.base_prefix} {sys.version}\n"


def _make(directory: Path) -> None:
    if importlib.util.find_spec("ensurepip") is not None:
        venv.create(directory, with_pip=True, clear=True)
        return
    venv.create(directory, with_pip=False, clear=True)
    with tempfile.TemporaryDirectory(prefix="fedq-pip-") as temporary:
        apt = Apt(Path(temporary), REMEDY)
        apt.run("apt-get", "-q", "download", "python3-pip-whl")
        (package,) = apt.archives.glob("python3-pip-whl_*.deb")
        subprocess.run(["dpkg", "-x", package, temporary], check=True)
        (wheel,) = Path(temporary).glob("usr/share/python-wheels/pip-*.whl")
        # Python can run a wheel, as it is a zip file: this temporary pip installs the permanent one.
        subprocess.run([directory / "bin/python", wheel / "pip", "install", "--quiet", "pip"], check=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except (FedqError, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"error: {error}")
