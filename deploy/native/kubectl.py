"""kubectl, which builds and checks the manifests of deploy/k8s: installed, or unpacked from Debian's package.

`python -m deploy.native.kubectl` prints where it is.
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

OLDEST = (1, 27)  #: the first one whose kustomize is 5.0; Debian 12 has 1.20
#: The oldest Debian with such a package. It asks for no newer C library than Debian 12 has.
RELEASE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
REMEDY = f"kubectl; install {'.'.join(map(str, OLDEST))} or newer"


@functools.cache
def find() -> Path:
    """The program, fetched once per user if it is not installed or too old; `Unavailable` where that cannot be."""
    found = shutil.which("kubectl")
    if found is not None and version(Path(found)) >= OLDEST:
        return Path(found)
    tree = unpacked(f"kubectl-{RELEASE}-{platform.machine()}", "kubectl (16 MB)", _download)
    return tree / "usr/bin/kubectl"


def version(program: Path) -> tuple[int, int]:
    """Major and minor; (0, 0) where it does not say."""
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
    """The package, from wherever the system has its own packages from."""
    why = Unavailable(f"This system is no Debian with {KEYRING}, so apt cannot fetch {REMEDY}.")
    for number, mirror in enumerate(mirrors() if KEYRING.exists() else []):
        try:
            apt = Apt(folder / str(number), REMEDY, f"deb [signed-by={KEYRING}] {mirror} {RELEASE} main")
            # Named with its release: an installed one of the same name and a higher version would be preferred.
            apt.run("apt-get", "-q", "download", f"kubectl/{RELEASE}")
            return list(apt.archives.glob("kubectl_*.deb"))
        except Unavailable as error:  # somebody else's packages, or security's; Debian's own are elsewhere
            why = error
    raise why


if __name__ == "__main__":
    try:
        print(find())
    except (FedqError, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"error: {error}")
