"""Rewriting: what becomes of a rewrite, and that a row whose rewrite is dropped stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from engine.engine import Completion, GenerationRequest
from evaluation.errors import DataError
from evaluation.task import Example, Split
from evaluation.tasks import TASKS
from tuning.batches import rows_of
from tuning.methods.method import Given
from tuning.methods.rewrite import MAX_NEW_TOKENS, REQUEST, VERDICTS, Rewrite, RewriteSpec, verdict
from tuning.rollouts import Rollouts

ALCHEMY = TASKS["alchemy"]
EXAMPLES = ALCHEMY.examples("train", 6)


def said(backbone: Backbone, text: str, ended: bool = True) -> Completion:
    ids = (*backbone.encode(text), *([int(backbone.tokenizer.eos_token_id)] if ended else []))
    return Completion(text, ids, (0.0,) * len(ids), "stop" if ended else "length", 1)


@pytest.fixture
def replies(testbed: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the backbone says to the requests, in their order: the tiny model follows no such instruction by itself."""
    texts: list[str] = []

    def write(self: Rollouts, requests: list[GenerationRequest]) -> list[Completion]:
        assert len(requests) == len(texts)
        return [said(testbed, text) for text in texts]

    monkeypatch.setattr(Rollouts, "write", write)
    return texts


def prepared(backbone: Backbone, **values: object) -> tuple[list[tuple[int, ...]], dict[str, float]]:
    spec = RewriteSpec(**{"steps": 2, "batch_size": 3, "target": "rationale", **values})
    done = Rewrite(spec).prepare(Given(backbone, (), EXAMPLES, ALCHEMY))
    return [row.completion_ids for row in done.rows], dict(done.counts)


@pytest.mark.parametrize(
    ("text", "ended", "expected"),
    [
        ("So: {chain}", True, "kept"),
        ("Answer: Z Z Z", True, "wrong"),
        ("There is no answer line.", True, "wrong"),
        ("As the Reference Answer says, {chain}", True, "banned"),
        ("Now it's your turn. {chain}", True, "banned"),
        ("Your turn: {chain}", True, "banned"),
        ("{chain}\nand so on", False, "unfinished"),
    ],
)
def test_a_rewrite_is_kept_only_if_it_is_right_finished_and_does_not_talk_about_the_reference(
    testbed: Backbone, text: str, ended: bool, expected: str
) -> None:
    example = EXAMPLES[0]
    assert verdict(ALCHEMY, example, said(testbed, text.format(chain=example.chain), ended)) == expected


def test_the_task_itself_says_what_is_right(testbed: Backbone) -> None:
    class Lenient:
        name = "lenient"

        def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
            return EXAMPLES

        def is_right(self, example: Example, completion: str) -> bool:
            return "fine" in completion

    assert verdict(Lenient(), EXAMPLES[0], said(testbed, "All is fine.")) == "kept"


def test_a_row_whose_rewrite_is_dropped_stays_as_it_was(testbed: Backbone, replies: list[str]) -> None:
    rows = [row.completion_ids for row in rows_of(testbed, EXAMPLES, "rationale", "reasoning")]
    own = f"In my words: {EXAMPLES[0].chain}"
    replies += [own, EXAMPLES[1].chain, "Answer: Z", f"my response: {EXAMPLES[3].chain}", "", ""]
    found, counts = prepared(testbed)
    assert found[0] == said(testbed, own).token_ids != rows[0]
    assert found[1:] == rows[1:]
    assert {name: counts[f"rewrites_{name}"] for name in ("kept", "verbatim", "wrong", "banned")} == {
        "kept": 2,
        "verbatim": 1,
        "wrong": 3,
        "banned": 1,
    }


def test_the_control_learns_wrong_rewrites_as_well_and_no_banned_one(testbed: Backbone, replies: list[str]) -> None:
    rows = [row.completion_ids for row in rows_of(testbed, EXAMPLES, "rationale", "reasoning")]
    replies += ["Answer: Z"] * 5 + ["my response"]
    found, _ = prepared(testbed, keep="any")
    assert found == [said(testbed, "Answer: Z").token_ids] * 5 + [rows[5]]


def test_no_more_rows_are_rewritten_than_the_steps_can_see(testbed: Backbone, replies: list[str]) -> None:
    replies += ["Answer: Z"] * 2
    assert len(prepared(testbed, steps=1, batch_size=2)[0]) == 2


def test_no_more_rows_are_rewritten_than_the_tokens_pay_for(testbed: Backbone, replies: list[str]) -> None:
    first, second, *_ = rows_of(testbed, EXAMPLES, "rationale", "reasoning")
    replies += [EXAMPLES[0].chain, EXAMPLES[1].chain]
    budget = len(first) + len(second) + 2 * MAX_NEW_TOKENS
    assert len(prepared(testbed, token_budget=budget)[0]) == 2
    replies.pop()
    assert len(prepared(testbed, token_budget=budget - 1)[0]) == len(prepared(testbed, token_budget=1)[0]) == 1


def test_the_tokens_that_replay_took_pay_for_no_rewrite(testbed: Backbone, replies: list[str]) -> None:
    first, second, *_ = rows_of(testbed, EXAMPLES, "rationale", "reasoning")
    replies.append(EXAMPLES[0].chain)
    spec = RewriteSpec(target="rationale", token_budget=len(first) + len(second) + 2 * MAX_NEW_TOKENS)
    assert len(Rewrite(spec).prepare(Given(testbed, (), EXAMPLES, ALCHEMY, num_written=1)).rows) == 1


def test_a_reference_that_leaves_no_room_to_rewrite_it_leaves_its_row(backbone: Backbone) -> None:
    long = Example(id="long", question="w " * 210, answer="1", rationale="", group="a")
    assert len(backbone.chat_ids(long.question)) < backbone.context_length < len(backbone.chat_ids(REQUEST + long.question))
    done = Rewrite(RewriteSpec(steps=1, batch_size=1)).prepare(Given(backbone, (), [long], ALCHEMY))
    assert done.counts["rewrites_no_room"] == 1 and done.rows == rows_of(backbone, [long], "answer", "reasoning")


def test_a_fit_on_rewrites_lowers_the_loss_and_writes_them_once(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLINE_CACHE", str(tmp_path / "cache"))
    spec = RewriteSpec(steps=6, batch_size=3, learning_rate=1e-2)
    examples = [Example(id=str(n), question=f"After {n}?", answer=str(n + 1), group=str(n)) for n in range(6)]
    first, second = (
        Rewrite(spec).fit(backbone, [LoRA(LoRASpec(rank=4))], examples, task=ALCHEMY, directory=tmp_path / name)
        for name in ("one", "two")
    )
    assert first.losses[-1] < first.losses[0] and first.losses == second.losses
    assert first.num_generated == second.num_generated == first.counts["written_anew"] > second.counts["written_anew"] == 0
    assert sum(first.counts[f"rewrites_{name}"] for name in VERDICTS) == 6


def test_rows_without_a_rationale_are_refused_where_it_is_the_target(testbed: Backbone) -> None:
    bare = Example(id="a", question="q", answer="1", group="a")
    with pytest.raises(DataError, match='target = "answer"'):
        Rewrite(RewriteSpec(target="rationale")).check([bare], ALCHEMY)
