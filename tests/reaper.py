"""What must be gone when the tests are, though they are killed."""

import subprocess


class Reaper:
    """A shell command that runs when it is released, or when this process ends, however it ends."""

    def __init__(self, command: str) -> None:
        # Our end of the pipe is the only one: the kernel closes it with us.
        self._shell = subprocess.Popen(
            ["sh", "-c", f"cat; {command}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def release(self) -> None:
        """Runs it and returns when it is done."""
        self._shell.communicate()
