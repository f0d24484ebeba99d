"""Whose HOME/studies/NAME is: a second study of that name would overwrite the adapters of the first, under its old scores."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import optuna

from adapters.whole_file import write_whole
from tuning.errors import StudyMismatch
from tuning.trial import ADAPTER

IDENTITY_KEY = "identity"  # user attribute of a study, made with it; one that was made without has none
_FILE = "study.txt"  # the identity of the study, and where that is kept


@dataclass(frozen=True)
class StudyFolder:
    """`name` of the study, `shown` its storage without a password. Each machine has a folder of its own, or all share one."""

    directory: Path
    name: str
    shown: str

    def refuse_to_new(self) -> None:
        """Before a study is made: StudyMismatch where the folder is another one's."""
        if self._owner is not None or self._has_adapters:
            raise self._taken()

    def own(self, study: optuna.Study) -> None:
        """For who has just made the study: an identity, in the study first."""
        identity = uuid.uuid4().hex
        study.set_user_attr(IDENTITY_KEY, identity)
        self._write(identity)

    def refuse_to_other(self, study: optuna.Study) -> None:
        """For a study that is there already: StudyMismatch where the folder is another one's. An empty folder becomes its own."""
        owner = self._owner  # read first: it is written last
        identity = study.user_attrs.get(IDENTITY_KEY)
        if owner == identity:
            return
        if owner is not None or self._has_adapters:
            raise self._taken()
        self._write(str(identity))

    def leave(self) -> None:
        """After its study was deleted: the name is free again."""
        (self.directory / _FILE).unlink(missing_ok=True)

    @property
    def _owner(self) -> str | None:
        words = self._words
        return words[0] if words else None

    @property
    def _words(self) -> list[str]:
        file = self.directory / _FILE
        return file.read_text().split(maxsplit=1) if file.is_file() else []

    @property
    def _has_adapters(self) -> bool:
        return any(self.directory.glob(f"trials/*/{ADAPTER}"))

    def _write(self, identity: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        write_whole(self.directory / _FILE, f"{identity} {self.shown}\n")

    def _taken(self) -> StudyMismatch:
        kept_in = f", which is in {self._words[1].strip()}" if len(self._words) > 1 else ""
        return StudyMismatch(
            f"A study keeps its trials in a folder of its own, but {self.directory} is that of another study named "
            f"{self.name!r}{kept_in}, and this one is in {self.shown}. Give the recipe another name, use another --home, or "
            "remove the folder with the other study's adapters."
        )
