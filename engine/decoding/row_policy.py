"""A decoding policy on one row: the trace is watched, and every part of the policy acts in turn, the budget last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from adapters.routing import Routing
from engine.decoding.answer import ANSWER_CUE
from engine.decoding.budget import Budget
from engine.decoding.intervention import Compiled, Intervention
from engine.decoding.row_budget import CompiledBudget
from engine.decoding.tip import CompiledPenalty
from engine.decoding.trace import Trace
from engine.decoding.vocabulary import Vocabulary
from engine.engine import FinishReason
from engine.errors import CannotRun
from engine.profile import DecodingPolicy

# Legend: V vocabulary

# By the policy's field, in the order in which they act: what a budget forbids stays forbidden.
COMPILED: Mapping[str, Callable[..., Compiled]] = {"tip": CompiledPenalty.of, "budget": CompiledBudget.of}


@dataclass(frozen=True)
class CompiledPolicy:
    """A policy's interventions with their token ids looked up. `parts` is empty where every one is off."""

    parts: tuple[Compiled, ...]
    backbone: Vocabulary
    policy: DecodingPolicy

    @classmethod
    def of(cls, policy: DecodingPolicy, backbone: Vocabulary) -> CompiledPolicy:
        """CannotRun where a part cannot do its work on this backbone."""
        end = policy.end_on(backbone)
        if policy.branches is not None and end != ANSWER_CUE:
            raise CannotRun(
                f"The policy's `branches` are read by their {ANSWER_CUE!r} line, but its traces end with {end!r}. "
                "Leave out one of them."
            )
        if policy.interventions:
            _refuse_unseen(end, backbone)
        parts = tuple(COMPILED[name](part, backbone, end) for name, part in policy.interventions.items())
        return cls(parts, backbone, policy)

    def for_row(self, begun_ids: Sequence[int], max_new_tokens: int, prompt_ids: Sequence[int] = ()) -> RowPolicy | None:
        """`begun_ids` belong to the trace. None where every intervention is off: such a row pays nothing.

        A trace between markers begins where the prompt or the reply begins it; a reply without one is all answer.
        """
        if not self.parts:
            return None
        parts = tuple(part.for_row(len(begun_ids) + max_new_tokens) for part in self.parts)
        row = RowPolicy(parts, self._trace(prompt_ids), self.policy.budget)
        for token_id in begun_ids:
            row.take(token_id)
        return row

    def _trace(self, prompt_ids: Sequence[int]) -> Trace:
        end, markers = self.policy.end_on(self.backbone), self.backbone.markers
        writes_begin = markers is not None and markers.end == end and not self.backbone.begins_chain(prompt_ids)
        return Trace(self.backbone.decode, end, markers.begin if markers is not None and writes_begin else "")


@dataclass(frozen=True, eq=False)
class RowPolicy:
    parts: tuple[Intervention, ...]
    trace: Trace
    budget: Budget | None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the reply is over for the budget: its answer line is complete, or has used up its tokens. None: it goes on."""
        if self.budget is None:
            return None
        if self.budget.answer_is_line and self.trace.answer_has_line_end:
            return "stop"
        return "length" if self.trace.num_answer_tokens >= self.budget.max_answer_tokens else None

    def adjust(self, logits_V: Tensor) -> Tensor:
        for part in self.parts:
            logits_V = part.adjust(logits_V, self.trace)
        return logits_V

    def force(self, drawn: int) -> int:
        for part in self.parts:
            drawn = part.force(drawn, self.trace)
        return drawn

    def take(self, token_id: int) -> None:
        self.trace.take(token_id)
        for part in self.parts:
            part.take(token_id, self.trace)


def _refuse_unseen(end: str, backbone: Vocabulary) -> None:
    for text in (end, f"\n{end}"):
        read = backbone.decode(backbone.encode(text))
        if end not in read:
            raise CannotRun(
                f"The policy's `trace_end` must be seen in the text, but {backbone.name!r} reads {read!r} where {end!r} was "
                "written: a special token, or characters that its tokenizer changes. Give another trace_end."
            )


def refuse_unable(policy: DecodingPolicy, capabilities: frozenset[str], engine: str, routing: Routing | None = None) -> None:
    """CannotRun that names what an engine of these capabilities lacks for a profile's policy or routing: to be called at load."""
    asked = (*policy.interventions, *(() if routing is None else ("routing",)))
    missing = [name for name in asked if name not in capabilities]
    if missing:
        raise CannotRun(
            f"The profile asks for {' and '.join(f'`{name}`' for name in missing)}, which {engine} cannot run. "
            "Use the PyTorch engine, or load the release without it."
        )
