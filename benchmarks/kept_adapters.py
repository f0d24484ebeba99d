"""The adapters that arms leave behind for others, and what is made of them: fitted or made once, kept in the runs folder."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

from adapters.backbone import Backbone
from adapters.merge import MergeSpec
from benchmarks.method_arms import Arm, Made
from registry.manifest import MANIFEST, file_digest, verify
from tuning.gating import Subject
from tuning.merging import Parents, merge, reduce_intruders

MAKING = Lock()  # rows are made side by side, on one backbone here


@dataclass(frozen=True)
class Kept:
    """Those of one seed and one budget, by arm, as they were fitted. `key` names an arm's: another recipe has another."""

    directory: Path
    backbone: str
    key: Callable[[str], str]

    def of(self, arm: str) -> Path:
        return self.directory / self.key(arm)

    def take(self, arm: str, fitted: Path) -> None:
        """Moves a trial's adapter here."""
        self.directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.of(arm), ignore_errors=True)
        fitted.rename(self.of(arm))

    def fields(self, arm: Arm) -> dict[str, object]:
        """The recipe's fields that name an earlier adapter."""
        named = {field: str(self.of(one).resolve()) for field, one in arm.earlier.items()}
        return {field: (place,) if field == "adapter.orthogonal_to" else place for field, place in named.items()}

    def made(self, made: Made) -> Path:
        """The directory of what is made, which several arms may read."""
        if made.how is None:
            (one,) = made.of
            return self.of(one)
        # Named by what it is made of: an arm that was fitted again is another part.
        parts = [file_digest(self.of(arm) / MANIFEST) for arm in made.of]
        place = self.directory / f"made-{hashlib.sha256(repr((parts, made.how)).encode()).hexdigest()[:16]}"
        with MAKING:
            if not place.is_dir():
                backbone = loaded(self.backbone)
                parents = Parents.of([Subject(arm, self.of(arm), verify(self.of(arm))) for arm in made.of], backbone)
                if isinstance(made.how, MergeSpec):
                    merge(parents, backbone, made.how, place)
                elif reduce_intruders(parents, backbone, made.how, place) is None:
                    return self.of(made.of[0])
        return place


@cache
def loaded(backbone: str) -> Backbone:
    return Backbone.load(backbone)
