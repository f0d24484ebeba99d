"""Becomes the command that it is given, and has the kernel end it with the process that waits for it.

    python -I -S tether.py PARENT COMMAND...

On Linux the command gets SIGTERM when its parent is gone, however that ended; elsewhere it only becomes the command. The parent
is the thread that starts this, so that it must be one that lasts.
"""

import os
import sys


def become(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG; what is executed keeps it
        if os.getppid() != parent:  # it was gone before the line above
            sys.exit(128 + signal.SIGTERM)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
