"""Runs a command that the kernel kills when its parent process ends.

Usage: python -I -S die_with_parent.py PARENT-PID COMMAND [ARGUMENT ...]
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>; the setting survives the exec below


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl took effect, so no signal would ever come
        return
    os.execv(command[0], command)  # noqa: S606 - there is no shell to start without


if __name__ == "__main__":
    main()
