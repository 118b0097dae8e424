"""`python3 -m deploy.native.bootstrap .venv`: a virtual environment, also where Debian's Python lacks ensurepip.

Runs before anything is installed: the standard library is all there is.
"""

import importlib.util
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from deploy.native.apt import Apt
from shared.errors import FedqError

REMEDY = "pip for this Python; install python3-venv"


def main(directory: Path) -> None:
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
        # A wheel is a zip that Python can run: this pip installs the one that stays.
        subprocess.run([directory / "bin/python", wheel / "pip", "install", "--quiet", "pip"], check=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (FedqError, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"error: {error}")
