"""A rubric: the criteria that an explanation is read by, their order, and how they make one number; a versioned file."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

EXPLANATION_RATIONALITY = Path(__file__).parent / "rubrics" / "explanation_rationality_1.toml"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Criterion(_Frozen):
    """`likelihood` says in words what is read where no judge is asked."""

    name: str
    definition: str
    lowest: str
    highest: str
    likelihood: str


class Overall(_Frozen):
    gates: tuple[str, ...]
    support: tuple[str, ...]


class JudgePrompt(_Frozen):
    prompt: str


class Rubric(_Frozen):
    name: str
    version: int
    lowest: int
    highest: int
    overall: Overall
    criteria: tuple[Criterion, ...]
    judge: JudgePrompt

    @property
    def digest(self) -> str:
        """SHA-256 over all that it says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def combined(self, found: Mapping[str, float]) -> float:
        """Mean support, of which a gain counts as far as the weaker gate is open; no criterion that rises lowers it.

        Gates are in 0 .. 1. What speaks against the conclusion counts in full, however unacceptable it is.
        """
        support = sum(found[name] for name in self.overall.support) / len(self.overall.support)
        return support * min(found[name] for name in self.overall.gates) if support > 0 else support

    def share(self, score: int) -> float:
        """A score as a share of the scale, 0 .. 1."""
        return (score - self.lowest) / (self.highest - self.lowest)

    def question(self, criterion: Criterion, question: str, explanation: str) -> str:
        """What a judge is asked about one criterion."""
        return self.judge.prompt.format(
            name=criterion.name,
            definition=criterion.definition,
            lowest=criterion.lowest,
            highest=criterion.highest,
            lowest_score=self.lowest,
            highest_score=self.highest,
            question=question,
            explanation=explanation,
        )


@cache
def load_rubric(path: Path = EXPLANATION_RATIONALITY) -> Rubric:
    return Rubric.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
