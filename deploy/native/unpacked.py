"""Programs unpacked once, without root, into a folder of the user."""

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from deploy.native.state import locked
from shared.errors import BadInput


def unpacked(
    name: str, what: str, download: Callable[[Path], Iterable[Path]], mend: Callable[[Path], None] | None = None
) -> Path:
    """The folder `name` with the contents of the packages that `download(folder)` fetches, patched by `mend`.

    The first caller creates it atomically, and others wait. Raises `BadInput` if scripts could not run in this path.
    """
    home = Path(os.environ.get("FEDQ_NATIVE_CACHE", Path.home() / ".cache/fedq/native"))
    # RabbitMQ's scripts do not quote their own paths, and a colon would split a search path.
    if unfit := re.search(r"[^\w/.,+@%=-]", str(home)):
        raise BadInput(
            f"The folder {str(home)!a} cannot hold {what}, for the character {unfit[0]!a} in its name: "
            "set FEDQ_NATIVE_CACHE to another."
        )
    tree = home / name
    with locked(home / f"{name}.lock"):
        if not tree.exists():
            print(f"Fetching {what}, once ...", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=home, prefix="fetching-") as temporary:
                fresh = Path(temporary) / "tree"
                for package in download(Path(temporary)):
                    subprocess.run(["dpkg", "-x", package, fresh], check=True)
                if mend is not None:
                    mend(fresh)
                fresh.rename(tree)
    return tree


def system() -> str:
    """The system for which the packages are built, such as `debian-12-x86_64`."""
    release = platform.freedesktop_os_release()
    return f"{release['ID']}-{release.get('VERSION_ID', 'rolling')}-{platform.machine()}"
