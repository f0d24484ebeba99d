"""Readings, kept by content: the same measure and items are never read twice of the same backbone, or of one adapter on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from adapters.backbone import Backbone
from adapters.whole_file import write_whole
from engine.engine import Engine
from evaluation.measure import Measure, Readings
from evaluation.task import Example, Task


class BaseCache:
    """One JSON file a key. The precision that the engine computes in is part of the key.

    `profile`: the digest of the adapter that the readings are of; empty for the backbone's own.
    """

    def __init__(self, directory: Path, precision: str, profile: str = "") -> None:
        self._directory, self._precision, self._profile = directory, precision, profile

    def read(self, measure: Measure, engine: Engine, backbone: Backbone, task: Task, examples: Sequence[Example]) -> Readings:
        """The stored readings of the backbone, or fresh ones, which are then stored."""
        stored = self.stored(measure, backbone, task, examples)
        if stored is None:
            stored = measure.read(engine, backbone, None, task, examples)
            self.store(stored, measure, backbone, task, examples)
        return stored

    def stored(self, measure: Measure, backbone: Backbone, task: Task, examples: Sequence[Example]) -> Readings | None:
        file = self._directory / f"{self.key(measure, backbone, task, examples)}.json"
        if not file.is_file():
            return None
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            tuples = {name: tuple(stored[name]) for name in ("item_ids", "values", "clusters")}
            return Readings(**{**stored, **tuples, "parts": {name: tuple(part) for name, part in stored["parts"].items()}})
        except (ValueError, KeyError, TypeError, AttributeError):  # damaged: it is read again, and takes the file's place
            return None

    def store(self, readings: Readings, measure: Measure, backbone: Backbone, task: Task, examples: Sequence[Example]) -> None:
        file = self._directory / f"{self.key(measure, backbone, task, examples)}.json"
        write_whole(file, json.dumps(asdict(readings)))

    def key(self, measure: Measure, backbone: Backbone, task: Task, examples: Sequence[Example]) -> str:
        """SHA-256 over all that decides a reading: equal keys, equal values."""
        identity = [
            backbone.fingerprint,
            backbone.numbers,
            self._precision,
            measure.name,
            measure.version,
            repr(measure),
            task.name,
            *filter(None, [self._profile]),
        ]
        items = [[e.id, e.question, e.answer, e.choices, e.rationale, e.context, e.group, e.listed] for e in examples]
        return hashlib.sha256(json.dumps([identity, items]).encode()).hexdigest()
