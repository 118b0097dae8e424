"""kubectl, either installed or unpacked from Debian's package; it builds and checks the manifests of deploy/k8s.

`python -m deploy.native.kubectl` prints its path.
"""

import functools
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.native.apt import Apt, mirrors
from deploy.native.unpacked import unpacked
from shared.errors import FedqError, Unavailable

OLDEST = (1, 27)  #: the first version with kustomize 5.0; Debian 12 has 1.20
#: The oldest Debian release with such a package, which runs with the C library of Debian 12.
RELEASE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
REMEDY = f"kubectl; install {'.'.join(map(str, OLDEST))} or newer"


@functools.cache
def find() -> Path:
    """Finds kubectl; fetches it once per user if it is missing or too old, or raises `Unavailable`."""
    found = shutil.which("kubectl")
    if found is not None and version(Path(found)) >= OLDEST:
        return Path(found)
    tree = unpacked(f"kubectl-{RELEASE}-{platform.machine()}", "kubectl (16 MB)", _download)
    return tree / "usr/bin/kubectl"


def version(program: Path) -> tuple[int, int]:
    """The major and minor version; (0, 0) if the program does not report one."""
    try:
        done = subprocess.run(
            [program, "version", "--client", "--output=json"], check=False, capture_output=True, text=True, timeout=30
        )
        said = json.loads(done.stdout)["clientVersion"]["gitVersion"]
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        return 0, 0
    numbers = re.match(r"v(\d+)\.(\d+)", said)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _download(folder: Path) -> list[Path]:
    """Downloads the package from one of the mirrors that the system uses; `Unavailable` if none has it."""
    why = Unavailable(f"This system is no Debian with {KEYRING}, so apt cannot fetch {REMEDY}.")
    for number, mirror in enumerate(mirrors() if KEYRING.exists() else []):
        try:
            apt = Apt(folder / str(number), REMEDY, f"deb [signed-by={KEYRING}] {mirror} {RELEASE} main")
            # Without the release in the name, apt would prefer a package that is installed in a higher version.
            apt.run("apt-get", "-q", "download", f"kubectl/{RELEASE}")
            return list(apt.archives.glob("kubectl_*.deb"))
        except Unavailable as error:  # this mirror serves third-party or security packages; another has Debian's
            why = error
    raise why


if __name__ == "__main__":
    try:
        print(find())
    except (FedqError, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"error: {error}")
