"""Direct preference optimisation by TRL: the preferred completion of a pair becomes likelier relative to the other.

-log sigmoid(beta * (log p/p_backbone (chosen) - log p/p_backbone (rejected))), Rafailov et al. 2023, arXiv 2305.18290, plus
`sft_weight` times the chosen one's cross-entropy, without which both may become less likely. The reference is the backbone with
its adapters off.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import model_validator

from adapters.backbone import Backbone
from adapters.lora import LoRA
from adapters.spec import Range
from tuning.batches import Row, endless_rows
from tuning.loop import OnStep, OnUpdate, Progress
from tuning.methods.method import MethodSpec
from tuning.trl_fit import Begun, Trainer, rows_at_once, run_trl

LOGGED = {
    "rewards/margins": "margin",  # beta times the difference of the two log-ratios to the backbone
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "rewards/accuracies": "preferred",  # share of pairs whose margin is above 0
}


class Pair(NamedTuple):
    """Two completions of one prompt, their end tokens included, of which the chosen one is to be preferred."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]

    @property
    def longest(self) -> int:
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


class DPOSpec(MethodSpec):
    """A step learns from `batch_size` pairs."""

    learning_rate: Annotated[float, Range(5e-6, 1e-4, log=True)] = 3e-5
    beta: Annotated[float, Range(0.05, 0.5)] = 0.1
    sft_weight: Annotated[float, Range(0.0, 1.0)] = 0.2

    @model_validator(mode="after")
    def _prefers(self) -> DPOSpec:
        if self.beta <= 0 or self.sft_weight < 0:
            raise ValueError(
                f"DPO needs beta above 0 and sft_weight of at least 0, but got {self.beta:g} and {self.sft_weight:g}."
            )
        return self


def run_dpo(
    backbone: Backbone,
    lora: LoRA,
    spec: DPOSpec,
    pairs: Sequence[Pair],
    on_step: OnStep | None = None,
    on_update: OnUpdate | None = None,
    directory: Path | None = None,
    identity: str = "",
    num_written: int = 0,
) -> Progress:
    """Fits the LoRA in place, by shuffled passes over the pairs; see tuning.trl_fit for what it logs and keeps."""
    drawn = list(islice(endless_rows(pairs, spec.seed), spec.steps * spec.batch_size))

    def trainer_of(begun: Begun) -> Trainer:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        class OfIds(DPOTrainer):  # type: ignore[misc]  # trl has no types
            """Reads the ids as they were written: made from text anew, a prompt and its completion may be other tokens."""

            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset

        left = drawn[begun.step * spec.batch_size :]
        config = DPOConfig(
            **begun.arguments,
            beta=spec.beta,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, spec.sft_weight],
            max_length=None,
            disable_dropout=False,  # it would stay off in the model, and leave the LoRA's own without effect
        )
        trainer: Trainer = OfIds(
            begun.model,
            args=config,
            train_dataset=Dataset.from_list([{name: list(ids) for name, ids in pair._asdict().items()} for pair in left]),
            processing_class=backbone.tokenizer,
            optimizers=begun.optimizers,
        )
        return trainer

    def rows_of(step: int) -> list[Row]:
        pairs = drawn[step * spec.batch_size : (step + 1) * spec.batch_size]
        return [Row(pair.prompt_ids, ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]

    pairs_at_once = rows_at_once(spec, 2 * max(pair.longest for pair in pairs))
    return run_trl(
        backbone, lora, spec, trainer_of, LOGGED, on_step, on_update, directory, identity, pairs_at_once, num_written, rows_of
    )
