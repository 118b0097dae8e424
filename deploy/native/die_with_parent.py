"""Run a command that the kernel ends together with the process that asked for it.

python -I -S tether.py PARENT-PID COMMAND [ARGUMENT ...]
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>; it survives the exec below


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew whom to watch
        return
    os.execv(command[0], command)  # noqa: S606 - there is no shell to start without


if __name__ == "__main__":
    main()
