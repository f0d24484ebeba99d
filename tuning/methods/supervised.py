"""Learning rows by cross-entropy on their completions, with what keeps a fit near the backbone.

What differs between the supervised methods is where the rows come from; the loss and its retention levers are theirs in common.
The pull towards the backbone is the forward KL, KL(backbone || adapted), averaged over completion tokens: of the distances
between the two it is the one that predicts forgetting (RL's Razor, arXiv 2509.04259), and it needs one more forward with the
adapter off. On the domain's own completions it pulls against what is learnt there; on replay (see tuning.replay) it does not.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, ClassVar, Literal, NamedTuple, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from adapters.lora import LoRA
from adapters.softcot import SoftCoT
from adapters.spec import Choices, Range
from evaluation.errors import DataError
from evaluation.task import Example
from tuning.batches import Row, collate, endless_rows
from tuning.distance import label_logits, pull_to_base
from tuning.errors import BadRecipe
from tuning.loop import Learner, check_budget, run
from tuning.methods.method import Fit, Given, Method, MethodSpec
from tuning.processes import Processes
from tuning.replay import Replay
from tuning.rollouts import rollouts

# Legend: N label positions of a batch, V vocabulary

S = TypeVar("S", bound=Sized)


class SupervisedSpec(MethodSpec):
    """`loss` dft weighs each token by its own probability, without a gradient through it (Wu et al., arXiv 2508.05629).

    `replay_share` of the rows of every batch are replay. With `kl_on` replay, a quarter as many rows as a batch has are read on
    top of it, for the pull alone.
    """

    written_first: ClassVar[tuple[str, ...]] = ("num_replay",)

    loss: Annotated[Literal["nll", "dft"], Choices(("nll", "dft"))] = "nll"
    kl_weight: Annotated[float, Range(0.0, 1.0)] = 0.0
    kl_on: Annotated[Literal["completions", "replay"], Choices(("completions", "replay"))] = "completions"
    replay_share: Annotated[float, Range(0.0, 0.3)] = 0.0
    replay_from: Annotated[Literal["backbone", "families"], Choices(("backbone", "families"))] = "backbone"
    num_replay: int = 64  # different prompts

    @property
    def replays(self) -> bool:
        return self.replay_share > 0 or self.holds

    @property
    def holds(self) -> bool:
        """Whether the pull is read on replay."""
        return self.kl_weight > 0 and self.kl_on == "replay"

    @model_validator(mode="after")
    def _retains(self) -> SupervisedSpec:
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight must be at least 0, but got {self.kl_weight:g}.")
        if not 0 <= self.replay_share < 1 or self.num_replay < 1:
            raise ValueError(
                f"A fit needs 0 <= replay_share < 1 and num_replay of at least 1, but got {self.replay_share:g} and "
                f"{self.num_replay}."
            )
        return self


class Prepared(NamedTuple):
    """The rows of a fit, what was written and trained to get them, and what is to be said of them.

    What was written counts whether or not it was kept from before: the same fit costs the same, in tokens, every time.
    """

    rows: Sequence[Row]
    num_generated: int = 0
    num_new: int = 0  # of these, written in this very call
    counts: Mapping[str, float] = {}
    num_tokens: int = 0  # that fits before the last one trained on
    seconds: float = 0.0  # of their steps


@dataclass(frozen=True)
class Supervised(Method):
    """A method that turns examples into rows once, before the first step, and then learns the rows."""

    spec: SupervisedSpec

    @abstractmethod
    def prepare(self, given: Given) -> Prepared:
        """The rows, in an order that the same call gives again."""

    def learner(self, backbone: Backbone, stack: Stack, rows: Sequence[Row], replay: Sequence[Row] = ()) -> Learner[Row]:
        return Rows.drawn(backbone, stack, self.spec, rows, replay)

    def fitted(self, given: Given) -> Fit:
        started = time.monotonic()
        here = Processes.here()
        if here.count > 1 and self.spec.replays:
            raise BadRecipe(
                f"Replay is written for a fit in one process, but {here.count} were launched. Launch one, or leave out "
                'replay_share and kl_on = "replay".'
            )
        if here.in_step:
            check_sharded(given.adapters)
        replayed = replay_of(given, self.spec)
        check_budget(self.spec, replayed.num_generated)
        given = given._replace(replay=replayed.rows, num_written=replayed.num_generated)
        prepared = self.prepare(given)
        prepared_s = max(0.0, time.monotonic() - started - prepared.seconds)  # of these an earlier process may have spent some
        num_generated = replayed.num_generated + prepared.num_generated
        learner = self.learner(given.backbone, Stack(given.adapters), prepared.rows, given.replay)
        fit = learnt(given, self.spec, learner, prepared.rows, num_generated + prepared.num_tokens)
        sizes = {
            "rows": len(prepared.rows),
            "replay_rows": len(replayed.rows),
            "written_anew": replayed.num_new + prepared.num_new,
        }
        return replace(
            fit,
            num_tokens=fit.num_tokens + prepared.num_tokens,
            seconds=fit.seconds + prepared.seconds,
            num_generated=num_generated,
            counts={"prepare_s": prepared_s, **sizes, **prepared.counts},
        )


def replay_of(given: Given, spec: SupervisedSpec) -> Prepared:
    """The replay rows that the spec asks for; none where nothing replays."""
    if not spec.replays:
        return Prepared([])
    domain = given.task.name if given.task else ""
    replay = Replay(spec.replay_from, spec.num_replay, spec.seed, domain)
    with rollouts(given.backbone, directory=given.kept_in("replay"), on_chunk=given.alive) as writer:
        return Prepared(replay.rows(given.backbone, writer), writer.num_used, writer.num_generated)


def learnt(given: Given, spec: SupervisedSpec, learner: Learner[Row], rows: Sequence[Row], num_written: int = 0) -> Fit:
    """Fits the given adapters to the rows and the replay, in place. `num_written` tokens of the budget are used up already."""
    stack = Stack(given.adapters)
    identity = identity_of(given.backbone, given.adapters, spec, [*rows, *given.replay]) if given.directory else ""
    done = run(given.backbone, stack, spec, learner, given.on_step, given.on_update, given.directory, identity, num_written)
    return Fit({name: tuple(values) for name, values in done.numbers.items()}, done.num_tokens, done.seconds)


@dataclass(frozen=True)
class Rows:
    """A learner of rows: drawn once, a list of them a step."""

    backbone: Backbone
    stack: Stack
    spec: SupervisedSpec
    batches: Sequence[Sequence[Row]]

    @classmethod
    def drawn(
        cls, backbone: Backbone, stack: Stack, spec: SupervisedSpec, rows: Sequence[Row], replay: Sequence[Row] = ()
    ) -> Rows:
        check_room(backbone, [*rows, *replay])
        batches = drawn_batches(spec, rows, replay)
        think_ahead(backbone, stack, [row.prompt_ids for batch in batches for row in batch])
        return cls(backbone, stack, spec, batches)

    def batch(self, step: int) -> Sequence[Row]:
        return self.batches[step]

    def rows(self, batch: Sequence[Row]) -> Sequence[Row]:
        return batch

    def num_tokens(self, batch: Sequence[Row]) -> int:
        return sum(map(len, batch))

    def backward(self, share: Sequence[Row], batch: Sequence[Row]) -> dict[str, float]:
        spec, num_labels = self.spec, sum(row.num_labels for row in batch if not row.held)
        num_pulled = sum(row.num_labels for row in batch if row.held) if spec.holds else num_labels
        total, pulled = 0.0, 0.0
        for held in (False, True):
            for part in parts_of(share, batch, held, spec.micro_batch_tokens):
                with self.backbone.autocast():
                    logits_NV, labels_N = label_logits(self.backbone, collate(self.backbone, self.stack, part))
                loss = logits_NV.new_zeros((), dtype=torch.float32)
                if not held:
                    loss = token_loss(logits_NV.float(), labels_N, spec.loss) / num_labels
                    total += float(loss.detach())
                if spec.kl_weight and held == spec.holds:
                    pull = pull_to_base(self.backbone, logits_NV, part) / num_pulled
                    pulled += float(pull.detach())
                    loss = loss + spec.kl_weight * pull
                loss.backward()
        return {"loss": total} | ({"kl": pulled} if spec.kl_weight else {})


def drawn_batches(spec: SupervisedSpec, rows: Sequence[Row], replay: Sequence[Row]) -> list[list[Row]]:
    """What each step learns from and is held to, sorted by length.

    Replay's share is kept over the steps as a whole, and within one row after every step.
    """
    own, again = endless_rows(rows, spec.seed), endless_rows(replay, f"{spec.seed}/replay")
    held = (replace(row, held=True) for row in endless_rows(replay, f"{spec.seed}/held"))
    num_held, wanted = max(1, spec.batch_size // 4) if spec.holds else 0, spec.replay_share * spec.batch_size
    batches, num_tokens = list[list[Row]](), 0
    for step in range(spec.steps):
        num_again = int((step + 1) * wanted) - int(step * wanted)
        batch = [*islice(own, spec.batch_size - num_again), *islice(again, num_again), *islice(held, num_held)]
        batches.append(sorted(batch, key=len))
        num_tokens += sum(map(len, batch))
        if spec.token_budget is not None and num_tokens >= spec.token_budget:
            break
    return batches


def token_loss(logits_NV: Tensor, labels_N: Tensor, loss: str) -> Tensor:
    """Summed over the tokens, in nats; dft: each token's negative log-probability times its probability, held constant."""
    if loss == "nll":
        return cross_entropy(logits_NV, labels_N, reduction="sum")
    nll_N = cross_entropy(logits_NV, labels_N, reduction="none")
    return (nll_N * torch.exp(-nll_N.detach())).sum()


def micro_batches(rows: Sequence[S], max_tokens: int) -> list[list[S]]:
    """Rows come sorted by length: a part is as many as fit under the padded limit, one at least."""
    parts: list[list[S]] = []
    for row in rows:
        if not parts or len(row) * (len(parts[-1]) + 1) > max_tokens:
            parts.append([])
        parts[-1].append(row)
    return parts


def parts_of(share: Sequence[Row], batch: Sequence[Row], held: bool, max_tokens: int) -> list[list[Row]]:
    """The micro-batches of the share's rows that are held, or are not.

    Where processes run in step there are as many in each: one that has fewer reads a row without a label, and learns nothing.
    """

    def parts(rows: Sequence[Row]) -> list[list[Row]]:
        return micro_batches([row for row in rows if row.held == held], max_tokens)

    own, here = parts(share), Processes.here()
    if here.in_step:
        most = max(len(parts(batch[index :: here.count])) for index in range(here.count))
        own += [[replace(batch[0], learnt_from=len(batch[0].completion_ids))]] * (most - len(own))
    return own


def check_sharded(adapters: Sequence[Adapter]) -> None:
    """Raises BadRecipe for an adapter whose fit reads the backbone as often as its own rows need it."""
    if any(isinstance(adapter, SoftCoT) and not adapter.spec.static for adapter in adapters):
        raise BadRecipe(
            "Around a sharded backbone LoRA and steering vectors are fitted, but adapter.kind names soft thoughts, whose "
            'assistant reads each prompt apart. Take adapter.kind = "lora", or fit without shards: backbone_format = "nf4" or '
            "fit.gradient_checkpointing = true need less memory, too."
        )


def check_room(backbone: Backbone, rows: Sequence[Row], examples: Sequence[Example] = ()) -> None:
    """Raises DataError where a prompt and its completion together are more than the backbone can read.

    `examples` are those of the rows, one each, where they are known.
    """
    long = [index for index, row in enumerate(rows) if len(row) > backbone.context_length]
    if long:
        first, named = rows[long[0]], f", {examples[long[0]].id!r}," if examples else ""
        raise DataError(
            f"A prompt and its completion fit into the {backbone.context_length} tokens of {backbone.name!r}, but {len(long)} of "
            f"{len(rows)} rows do not; the first{named} has {len(first.prompt_ids)} and {len(first.completion_ids)}. Shorten its "
            "question, context or rationale, or leave it out."
        )


def identity_of(backbone: Backbone, adapters: Sequence[Adapter], spec: MethodSpec, rows: Sequence[object]) -> str:
    """SHA-256 over all that decides a fit: a checkpoint of another must not be taken for its own.

    The micro-batch is no part of it: a fit that ran out of memory goes on with a smaller one.
    """
    specs = [adapter.spec.model_dump(mode="json") for adapter in adapters]
    starts = [adapter.digest() for adapter in adapters if isinstance(adapter, (LoRA, SoftCoT))]
    told = spec.model_dump(mode="json", exclude={"micro_batch_tokens"})
    deciding = [backbone.fingerprint, specs, starts, told, [repr(row) for row in rows]]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def think_ahead(backbone: Backbone, stack: Stack, prompts: Sequence[tuple[int, ...]]) -> None:
    """Lets a soft-thought assistant read the prompts before any gradient is wanted: its states are then cached."""
    for adapter in stack.adapters:
        if isinstance(adapter, SoftCoT) and not adapter.spec.static and adapter.spec.num_chains == 1:
            with torch.no_grad():
                for prompt_ids in prompts:
                    adapter.states(backbone, prompt_ids)
