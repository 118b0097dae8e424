"""Programs in a folder of this user's, unpacked there once, without root."""

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
    """The folder `name` with what is in the packages that `download(folder)` fetches, as `mend` leaves it.

    Whoever comes first makes it, whole or not at all; others wait. `BadInput` where its scripts could not run there.
    """
    home = Path(os.environ.get("FEDQ_NATIVE_CACHE", Path.home() / ".cache/fedq/native"))
    # RabbitMQ's scripts quote none of their own paths, and a search path is cut at its colons.
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
    """The system that the packages are for, such as `debian-12-x86_64`."""
    release = platform.freedesktop_os_release()
    return f"{release['ID']}-{release.get('VERSION_ID', 'rolling')}-{platform.machine()}"
