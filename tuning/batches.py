"""Rows to train on, and batches that waste little: rows of like length together, logits only where a label is."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from adapters.adapter import Prompt, Stack
from adapters.backbone import Backbone
from evaluation.errors import DataError
from evaluation.task import Example, answer_line, direct_prompt, reasoning_prompt

# Legend: B batch, T tokens, H hidden

Item = TypeVar("Item")


@dataclass(frozen=True)
class Row:
    """One prompt and the completion to learn, the end token included. What comes before `learnt_from` carries no loss.

    A `held` row is not learnt: the pull towards the backbone alone reads it.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    learnt_from: int = 0
    held: bool = False

    @property
    def num_labels(self) -> int:
        return len(self.completion_ids) - self.learnt_from

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Batch:
    """Right-padded. `targets_BT[b, t]` is the token that position t must predict, or -100."""

    embeds_BTH: Tensor
    mask_BT: Tensor
    targets_BT: Tensor


class Turns(NamedTuple):
    """What the user says, and the gold reply."""

    asked: str
    reply: str


def turns_of(example: Example, index: int, target: str, prompt: str = "matching") -> Turns:
    """`target`: answer (asked for the answer alone), rationale (asked to reason), or mixed (the two in turn, by the index).

    `prompt` matching asks for an answer by the direct instruction and for a rationale by the one to reason; reasoning asks for
    both by the one to reason, as who has one prompt in production does.
    """
    direct = target == "answer" or (target == "mixed" and index % 2 == 0)
    asked = direct_prompt(example) if direct and prompt == "matching" else reasoning_prompt(example)
    return Turns(asked, answer_line(example.answer) if direct else example.chain)


def rows_of(
    backbone: Backbone, examples: Sequence[Example], target: str, prompt: str = "matching", trace_loss: bool = True
) -> list[Row]:
    """The gold reply to each, as `turns_of` has it. Without `trace_loss` a rationale is read and not learnt."""
    check_rationales(examples, target)
    end = int(backbone.tokenizer.eos_token_id)
    rows = []
    for index, example in enumerate(examples):
        asked, reply = turns_of(example, index, target, prompt)
        completion, learnt_from = tuple(backbone.encode(reply)), 0
        line = answer_line(example.answer)
        if reply != line and not trace_loss:
            trace = tuple(backbone.encode("".join(f"{step}\n" for step in example.steps)))
            completion, learnt_from = (*trace, *backbone.encode(line)), len(trace)
        rows.append(Row(backbone.chat_ids(asked), (*completion, end), learnt_from))
    return rows


def check_rationales(examples: Sequence[Example], target: str, learner: str | None = None) -> None:
    """Raises DataError where a rationale is to be learnt and a row has none: its bare answer would pass for one.

    `learner` names what learns rationales whatever the target.
    """
    bare = [example for example in examples if not example.steps] if target != "answer" else []
    if bare:
        way = 'learn the answer alone (target = "answer")' if learner is None else "take what learns answers alone"
        raise DataError(
            f"{learner or f'method.target = {target!r}'} learns a rationale from every row, but {len(bare)} of {len(examples)} "
            f"rows have none, {bare[0].id!r} first. Name the column that holds it as `rationale` in the task file's [columns], "
            f"or {way}."
        )


def endless_rows(rows: Sequence[Item], seed: int | str) -> Iterator[Item]:
    """Shuffled passes over the rows, without end: every row is seen before one comes again."""
    rng = random.Random(f"batches/{seed}")
    while True:
        yield from rng.sample(rows, len(rows))


def collate(backbone: Backbone, adapters: Stack, rows: Sequence[Row]) -> Batch:
    """Embeds prompts as the adapters transform them; gradients flow into soft thoughts."""
    return padded(backbone, [adapters.transform(backbone, Prompt(row.prompt_ids)) for row in rows], rows)


def padded(backbone: Backbone, prompts: Sequence[Prompt], rows: Sequence[Row]) -> Batch:
    """The rows' completions, each after its transformed prompt."""
    embeddings: nn.Embedding = backbone.embeddings
    lengths = [len(prompt.ids) + len(row.completion_ids) for prompt, row in zip(prompts, rows, strict=True)]
    width, device = max(lengths), embeddings.weight.device
    targets_BT = torch.full((len(rows), width), -100, device=device)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.long, device=device)
    embedded = []
    for index, (prompt, row, length) in enumerate(zip(prompts, rows, lengths, strict=True)):
        completion = torch.tensor(row.completion_ids, device=device)
        first = len(prompt.ids) - 1
        targets_BT[index, first + row.learnt_from : length - 1] = completion[row.learnt_from :]
        mask_BT[index, :length] = 1
        padding = embeddings.weight.new_zeros(width - length, embeddings.embedding_dim)
        embedded.append(torch.cat((prompt.embed(embeddings), embeddings(completion), padding)))
    return Batch(torch.stack(embedded), mask_BT, targets_BT)
