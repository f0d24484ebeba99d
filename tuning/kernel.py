"""Which start of which machine's kernel this is: the same in all containers of a machine, whatever they are named."""

from __future__ import annotations

from pathlib import Path

_FILE = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """None where the system does not tell, as outside Linux."""
    try:
        return _FILE.read_text().strip() or None
    except OSError:
        return None
