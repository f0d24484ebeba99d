"""Supervised fine-tuning: the domain's own rows, as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from adapters.backbone import Backbone
from adapters.spec import Choices
from evaluation.task import Example, Task
from tuning.batches import check_rationales, rows_of
from tuning.methods.method import Given
from tuning.methods.supervised import Prepared, Supervised, SupervisedSpec, check_room


class SFTSpec(SupervisedSpec):
    """`target` is what is learnt of a row: its answer line alone, its rationale and the answer line, or the two in turn."""

    name: Literal["sft"] = "sft"
    target: Annotated[Literal["answer", "rationale", "mixed"], Choices(("answer", "rationale", "mixed"))] = "answer"
    prompt: Annotated[Literal["reasoning", "matching"], Choices(("reasoning", "matching"))] = "reasoning"  # see rows_of
    trace_loss: bool = True  # False: of a row with a rationale, the answer line alone carries loss


@dataclass(frozen=True)
class SFT(Supervised):
    spec: SFTSpec
    spec_type = SFTSpec
    splits = True

    def check(self, examples: Sequence[Example], task: Task) -> None:
        check_rationales(examples, self.spec.target)

    def check_room(self, backbone: Backbone, examples: Sequence[Example]) -> None:
        check_room(backbone, rows_of(backbone, examples, self.spec.target, self.spec.prompt), examples)

    def prepare(self, given: Given) -> Prepared:
        return Prepared(rows_of(given.backbone, given.examples, self.spec.target, self.spec.prompt, self.spec.trace_loss))
