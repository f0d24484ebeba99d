"""RLAG: what is answered with literature at hand is preferred to what is answered without, and the literature is learnt.

Reinforcement learning from augmented generation (Nie et al., arXiv 2509.20162), with the loss and the constants of its code:
iterated preference optimisation over options, without a policy gradient, a reward model or a reference. Ours are the filter (a
preferred answer that is wrong is left out; the paper only counts it), the prompts (those that a domain is asked with), BM25 over
the texts of the training rows for its knowledge base, and `kl_weight`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.spec import Choices, Range
from engine.engine import Engine
from engine.profile import Profile
from evaluation.errors import DataError
from evaluation.measures.choice import options_of
from evaluation.task import Example, Task, answer_line, direct_prompt
from evaluation.tasks.generated import GeneratedTask
from tuning.batches import Row, collate, endless_rows
from tuning.distance import label_logits, pull_to_base
from tuning.journal import Journal
from tuning.loop import run
from tuning.methods.method import Fit, Given, Method, MethodSpec
from tuning.methods.supervised import check_room, identity_of
from tuning.preferences import Asked, Likeliest, augmented_prompt, preferences
from tuning.retrieval import Texts
from tuning.rollouts import WRITER, rollouts

# Legend: B trios, N label positions of a batch

MOST_AUGMENTED, LEAST_NAIVE = -0.2, -5.0  # nats per token: beyond them an answer is likely, or unlikely, enough
LEAST_ASKED = 32  # rows of an iteration's part: the few that a short fit reads may by chance have no gap
BETA_SAME, BETA_DIFFERENT = (0.5, 0.0), (0.2, 0.5)  # of the knowledge, and of the answers


class RLAGSpec(MethodSpec):
    """The rows are cut into `iterations` parts; before each part, the adapter as it is then answers with and without literature.

    `retrieval` random is the control: any texts instead of those that the question finds.
    """

    name: Literal["rlag"] = "rlag"
    iterations: int = 3
    num_texts: Annotated[int, Choices((1, 2, 4))] = 2
    retrieval: Literal["best", "random"] = "best"
    gamma: float = 0.8  # the margin that the preference is to reach
    kl_weight: Annotated[float, Range(0.0, 1.0)] = 0.0  # of KL(backbone || adapted) on both answers

    @model_validator(mode="after")
    def _iterates(self) -> RLAGSpec:
        if not 1 <= self.iterations <= self.steps or self.num_texts < 1 or self.kl_weight < 0:
            raise ValueError(
                f"RLAG needs 1 <= iterations <= steps, num_texts >= 1 and kl_weight >= 0, but got {self.iterations} iterations "
                f"of {self.steps} steps, {self.num_texts} and {self.kl_weight:g}."
            )
        return self


@dataclass(frozen=True)
class Trio:
    """The three sequences of a row, which lie in memory together. `same`: both answers are one, which is not learnt."""

    knowledge: Row
    chosen: Row
    rejected: Row
    same: bool

    def __len__(self) -> int:
        return len(self.knowledge) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class RLAG(Method):
    spec: RLAGSpec
    spec_type = RLAGSpec
    kinds = frozenset({"lora"})  # knowledge is learnt from bare text, before which no soft thought stands

    def check(self, examples: Sequence[Example], task: Task) -> None:
        for example in () if isinstance(task, GeneratedTask) else examples:  # whose problems all have rivals
            options_of(task, example)
        if len(examples) < self.spec.iterations:
            raise DataError(
                f"RLAG cuts its rows into {self.spec.iterations} parts, but there are {len(examples)} rows. Lower "
                "method.iterations."
            )

    def fitted(self, given: Given) -> Fit:
        task, backbone, examples, directory = self.required(given.task), given.backbone, given.examples, given.directory
        self.check(examples, task)
        started, stack = time.monotonic(), Stack(given.adapters)
        identity = identity_of(backbone, given.adapters, self.spec, examples)
        journal = Journal(directory / "preferences.jsonl") if directory else None
        found = Texts.of(examples).found(examples, self.spec.num_texts, self.spec.retrieval)
        with rollouts(backbone) as writer:
            learner = Augmented(backbone, stack, self.spec, task, examples, found, writer.engine, journal, identity)
            prepared_s = time.monotonic() - started
            done = run(backbone, stack, self.spec, learner, given.on_step, given.on_update, directory, identity)
        numbers = {name: tuple(values) for name, values in done.numbers.items()}
        return Fit(numbers, done.num_tokens, done.seconds, counts={"prepare_s": prepared_s, **learner.counts(done.step)})


@dataclass(frozen=True)
class Augmented:
    """A learner of trios. What an iteration prefers is decided once, and kept: a fit that goes on must not decide anew."""

    backbone: Backbone
    stack: Stack
    spec: RLAGSpec
    task: Task
    examples: Sequence[Example]
    found: Sequence[tuple[str, ...]]  # texts by example
    engine: Engine
    journal: Journal | None
    identity: str
    _decided: dict[int, list[Likeliest]] = field(default_factory=dict)
    _batches: dict[int, list[list[Trio]]] = field(default_factory=dict)
    _loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for entry in self.journal.entries() if self.journal else ():
            if entry["identity"] == self.identity:
                self._decided[entry["iteration"]] = [Likeliest(*one) for one in entry["preferences"]]

    def batch(self, step: int) -> Sequence[Trio]:
        iteration = self.iteration(step)
        return self.batches(iteration)[step - self.first_step(iteration)]

    def iteration(self, step: int) -> int:
        last = self.spec.iterations - 1
        return next((number for number in range(last) if step < self.first_step(number + 1)), last)

    def first_step(self, iteration: int) -> int:
        return sum(len(self.batches(number)) for number in range(iteration))

    def batches(self, iteration: int) -> list[list[Trio]]:
        """An even share of the steps, or of the tokens where they are what is limited."""
        if iteration not in self._batches:
            spec, steps = self.spec, self.num_steps(iteration)
            drawn, found = endless_rows(self.trios(iteration), f"{spec.seed}/{iteration}"), list[list[Trio]]()
            before = sum(self.num_tokens(batch) for number in range(iteration) for batch in self.batches(number))
            while len(found) < steps and not (found and before >= self._share_of_tokens(iteration + 1)):
                found.append(sorted(islice(drawn, spec.batch_size), key=len))
                before += self.num_tokens(found[-1])
            self._batches[iteration] = found
        return self._batches[iteration]

    def num_steps(self, iteration: int) -> int:
        """The most that an iteration takes."""
        ends = [math.ceil(number * self.spec.steps / self.spec.iterations) for number in (iteration, iteration + 1)]
        return ends[1] - ends[0]

    def _share_of_tokens(self, iterations: int) -> float:
        budget = self.spec.token_budget
        return math.inf if budget is None else budget * iterations / self.spec.iterations

    def trios(self, iteration: int) -> list[Trio]:
        """What is kept of an iteration's rows. Where no row is, those of the iteration before come again."""
        kept = [one for one in self.decided(iteration) if one.is_kept]
        if iteration == 0 and all(one.is_same for one in kept):
            raise DataError(
                f"RLAG learns from answers that literature changes, but of the first {len(self.decided(0))} rows {len(kept)} are "
                "answered rightly with it, and each of these is answered alike without it: the preferences have no gap. Raise "
                "method.num_texts, give rows with a rationale, or fit them by the method 'sft'."
            )
        if not kept:
            return self.trios(iteration - 1)
        trios = [self._trio(one) for one in kept]
        self._check_room(trios)
        return trios

    def _check_room(self, trios: Sequence[Trio]) -> None:
        check_room(self.backbone, [row for trio in trios for row in (trio.knowledge, trio.chosen, trio.rejected)])

    def decided(self, iteration: int) -> list[Likeliest]:
        """By the adapter as it is now, unless it was decided before."""
        if iteration not in self._decided:
            if self._loaded:
                self.engine.refresh(WRITER)
            else:
                self.engine.load(WRITER, Profile(tuple(self.stack.adapters)))
                self._loaded.append(WRITER)
            asked = [Asked(row, self.examples[row], self.found[row]) for row in self.asked(iteration)]
            self._check_room([self._trio(_right(one)) for one in asked])
            self._decided[iteration] = preferences(self.engine, self.backbone, WRITER, self.task, asked)
            if self.journal:
                kept = [list(one) for one in self._decided[iteration]]
                self.journal.append({"identity": self.identity, "iteration": iteration, "preferences": kept})
        return self._decided[iteration]

    def asked(self, iteration: int) -> list[int]:
        """The examples of an iteration's part, by index: as many as it reads if it keeps them all, at least LEAST_ASKED."""
        order = random.Random(f"parts/{self.spec.seed}").sample(range(len(self.examples)), len(self.examples))
        most = max(LEAST_ASKED, self.num_steps(iteration) * self.spec.batch_size)
        part = order[iteration :: self.spec.iterations][:most]
        if self.spec.token_budget is None:
            return part
        kept, size = list[int](), 0
        for row in part:
            if size >= self._share_of_tokens(1) and len(kept) >= LEAST_ASKED:
                break
            kept.append(row)
            size += len(self._trio(_right(Asked(row, self.examples[row], self.found[row]))))
        return kept

    def rows(self, batch: Sequence[Trio]) -> Sequence[Row]:
        return [row for trio in batch for row in (trio.chosen, trio.rejected)]

    def num_tokens(self, batch: Sequence[Trio]) -> int:
        return sum(map(len, batch))

    def backward(self, share: Sequence[Trio], batch: Sequence[Trio]) -> dict[str, float]:
        names = ("loss", "knowledge", "augmented", "naive", *(("kl",) if self.spec.kl_weight else ()))
        numbers, num_labels = dict.fromkeys(names, 0.0), sum(row.num_labels for row in self.rows(batch))
        for part in _parts(share, self.spec.micro_batch_tokens):
            knowledge_B, augmented_B, naive_B, pull = self._read(part)
            loss_B = rlag_loss(knowledge_B, augmented_B, naive_B, [trio.same for trio in part], self.spec.gamma)
            of_trios = {"loss": loss_B, "knowledge": knowledge_B, "augmented": augmented_B, "naive": naive_B}
            read = {name: values.sum() / len(batch) for name, values in of_trios.items()} | {"kl": pull / num_labels}
            (read["loss"] + self.spec.kl_weight * read["kl"]).backward()
            for name in names:
                numbers[name] += float(read[name].detach())
        return numbers

    def counts(self, steps: int) -> dict[str, float]:
        """Of all that was decided in the first steps: rows, those whose augmented answer is wrong, and trios of one answer."""
        done = range(self.iteration(max(0, steps - 1)) + 1)
        decided = [one for iteration in done for one in self._decided.get(iteration, ())]
        kept = [one for one in decided if one.is_kept]
        return {
            "preferences": len(decided),
            "chosen_failure": len(decided) - len(kept),
            "without_gap": sum(one.is_same for one in kept),
        }

    def _trio(self, one: Likeliest) -> Trio:
        example, texts = self.examples[one.row], self.found[one.row]
        end = int(self.backbone.tokenizer.eos_token_id)
        begin = self.backbone.tokenizer.bos_token_id
        said = tuple(
            token for text in texts for token in (end if begin is None else int(begin), *self.backbone.encode(text), end)
        )
        return Trio(
            Row(said[:1], said[1:]),
            self._answered(augmented_prompt(example, texts), one.augmented),
            self._answered(direct_prompt(example), one.naive),
            one.is_same,
        )

    def _answered(self, prompt: str, answer: str) -> Row:
        """The answer alone is learnt: what comes before it and the end of the turn are no part of a preference."""
        prefix = len(self.backbone.encode(answer_line("").rstrip()))
        return Row(self.backbone.chat_ids(prompt), tuple(self.backbone.encode(answer_line(answer))), prefix)

    def _read(self, trios: Sequence[Trio]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean log-probabilities of each trio's three sequences; the KL to the backbone, summed over all answer tokens."""
        rows = [row for trio in trios for row in (trio.knowledge, trio.chosen, trio.rejected)]
        with self.backbone.autocast():
            logits_NV, labels_N = label_logits(self.backbone, collate(self.backbone, self.stack, rows))
        logp_N = -cross_entropy(logits_NV.float(), labels_N, reduction="none")
        counts = [row.num_labels for row in rows]
        means = torch.stack([tokens.mean() for tokens in logp_N.split(counts)]).view(-1, 3)
        pull = logits_NV.new_zeros(())
        if self.spec.kl_weight:
            answers = torch.cat([torch.full((count,), place % 3 > 0) for place, count in enumerate(counts)])
            answered = [row for place, row in enumerate(rows) if place % 3]
            pull = pull_to_base(self.backbone, logits_NV[answers.to(logits_NV.device)], answered)
        return means[:, 0], means[:, 1], means[:, 2], pull


def _right(asked: Asked) -> Likeliest:
    """What is known of a row before it is asked: how long its sequences are, if the right answer is preferred."""
    return Likeliest(asked.row, asked.example.answer, asked.example.answer, is_kept=True)


def rlag_loss(knowledge_B: Tensor, augmented_B: Tensor, naive_B: Tensor, same: Sequence[bool], gamma: float) -> Tensor:
    """-log sigmoid(b_D r_D + b_A (min(r_A, -0.2) - max(r_N, -5)) - gamma), of mean log-probabilities per token, [B]."""
    betas = torch.tensor([BETA_SAME if one else BETA_DIFFERENT for one in same], device=knowledge_B.device)
    gap_B = augmented_B.clamp(max=MOST_AUGMENTED) - naive_B.clamp(min=LEAST_NAIVE)
    return -logsigmoid(betas[:, 0] * knowledge_B + betas[:, 1] * gap_B - gamma)


def _parts(trios: Sequence[Trio], max_tokens: int) -> list[list[Trio]]:
    """As many trios as fit with all three sequences padded to the longest, one at least."""
    parts: list[list[Trio]] = []
    longest = 0
    for trio in trios:
        width = max(len(trio.knowledge), len(trio.chosen), len(trio.rejected))
        longest = max(longest, width)
        if not parts or 3 * longest * (len(parts[-1]) + 1) > max_tokens:
            parts.append([])
            longest = width
        parts[-1].append(trio)
    return parts
