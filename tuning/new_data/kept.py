"""What a round has done so far, a whole file a step: the same rows again go on from there, or find that all is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.whole_file import write_whole
from registry.claim import held
from tuning.errors import RoundIsRunning

FOLDER = "continued"


@dataclass(frozen=True)
class RoundFolder:
    """Of one file of new rows and one champion, and of what else was asked for: another of these makes another round."""

    directory: Path

    @classmethod
    def of(cls, home: Path, name: str, data_sha256: str, champion_sha256: str, asked_sha256: str = "") -> RoundFolder:
        """`asked_sha256`: of a recipe that was given and a number of trials; empty where they are the usual ones."""
        digests = [data_sha256, champion_sha256, *([asked_sha256] if asked_sha256 else [])]
        return cls(home / FOLDER / name / "-".join(digest[:12] for digest in digests))

    @property
    def key(self) -> str:
        """Short, for the names of studies."""
        data, champion, *asked = self.directory.name.split("-")
        return f"{data[:8]}{champion[:4]}" + "".join(one[:4] for one in asked)

    def read(self, step: str) -> dict[str, Any] | None:
        """None before the step was done, and where its file is damaged: it is then done again."""
        try:
            found = json.loads((self.directory / f"{step}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, step: str, told: dict[str, Any]) -> dict[str, Any]:
        write_whole(self.directory / f"{step}.json", json.dumps(told, indent=2))
        return told

    def step(self, name: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the step told when it was done, or now."""
        found = self.read(name)
        return self.write(name, do()) if found is None else found


@contextmanager
def alone(home: Path, name: str) -> Iterator[None]:
    """RoundIsRunning where another process goes on with the same name."""
    with held(home / FOLDER / name / "lock") as holder:
        if holder:
            raise RoundIsRunning(
                f"New rows of {name} are taken in by one process at a time, but {holder} does so now. Try later."
            )
        yield
