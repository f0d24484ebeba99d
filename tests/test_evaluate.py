"""Evaluation: what is read, how it is paired, and what is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from engine.engine import Completion, Engine, GenerationRequest
from engine.errors import PromptTooLong
from engine.profile import Profile
from evaluation.base_cache import BaseCache
from evaluation.errors import DataError
from evaluation.evaluate import Evaluation, Planned, compared, evaluate
from evaluation.measure import Measure, Readings
from evaluation.measures import MEASURES
from evaluation.measures.correction import triple
from evaluation.statistics import flips
from evaluation.task import DIRECT, Example, Task
from evaluation.tasks import FAMILIES, TASKS
from service.commands.evaluate import show

TASK = FAMILIES["arithmetic"]
WRITTEN, CHAIN, CHOICE, CORRECTION = (
    MEASURES[name] for name in ("generation", "chain_likelihood", "choice_accuracy", "correction")
)


LONG = "At the very beginning of a long story:"


class Formless(ToyEngine):
    """Writes no answer line in the first replies to one of the two prompts."""

    def __init__(self, backbone: Backbone, examples: Sequence[Example], count: int, kind: str = "reasoned") -> None:
        super().__init__(backbone, examples)
        self._count, self._is_direct = count, kind == "direct"

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        asked = [
            place for place, one in enumerate(requests) if (DIRECT in self.backbone.decode(one.prompt_ids)) == self._is_direct
        ]
        lost = set(asked[: self._count])
        return [replace(done, text="So.") if place in lost else done for place, done in enumerate(super().complete(requests))]


@pytest.fixture
def examples() -> list[Example]:
    return TASK.examples("search", 12)


@pytest.fixture
def engine(backbone: Backbone, examples: list[Example]) -> ToyEngine:
    """Beside the backbone: one that answers without a chain, one that lost everything."""
    engine = ToyEngine(backbone, examples)
    engine.think("answers", Mind(writes_steps=0))
    engine.think("lost", Mind(solves=False))
    return engine


@pytest.mark.parametrize("name", ["generation", "chain_likelihood", "choice_accuracy", "correction", "information_gain_self"])
def test_the_backbone_against_itself_is_exactly_zero(
    engine: ToyEngine, backbone: Backbone, examples: list[Example], name: str
) -> None:
    # Under a name of its own: without one nothing is read twice, and nothing could differ.
    engine.load("empty", Profile())
    found = evaluate(engine, backbone, "empty", [Planned(MEASURES[name], TASK, examples, "protected")]).rows[0]
    assert found.adapted is not found.base
    assert (found.change.mean, found.change.low, found.change.high) == (0.0, 0.0, 0.0)


def test_right_answers_without_their_chain_are_a_loss(engine: ToyEngine, backbone: Backbone, examples: list[Example]) -> None:
    found = evaluate(engine, backbone, "answers", [Planned(WRITTEN, TASK, examples, "protected")]).rows[0]
    assert found.base.mean == 1.0 and found.adapted.mean == 0.0
    assert found.adapted.part_mean("answer_right") == 1.0
    assert flips(found.base.values, found.adapted.values).negative == 1.0
    assert found.adapted.part_mean("trace_tokens") < found.base.part_mean("trace_tokens")


def test_a_loss_is_claimed_by_a_test_and_no_change_is_none(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    engine.load("empty", Profile())
    plan = [Planned(WRITTEN, TASK, examples, "protected")]
    lost, same = evaluate(engine, backbone, "lost", plan), evaluate(engine, backbone, "empty", plan)
    assert lost.losses["arithmetic"] < 0.05 and same.losses == {"arithmetic": 1.0}
    assert lost.as_dict()["p_values_of_loss"] == lost.losses


def test_a_loss_in_every_item_of_few_templates_is_one_of_as_many_items() -> None:
    # Three templates have eight patterns of signs, by which no loss could ever be claimed.
    task = TASK.at_length(2)
    items = task.examples("search", 12)
    base, adapted = (Readings.of(WRITTEN, task, items, [value] * 12) for value in (1.0, 0.0))
    row = compared(Planned(WRITTEN, task, items, "protected"), base, adapted)
    assert len(set(base.clusters)) <= 3 and row.p_value_of_loss == pytest.approx(2**-12)


def test_a_loss_in_every_item_of_few_drawn_sets_is_one_of_as_many_sets() -> None:
    items = [Example(str(item), f"Question {item}?", "yes", group=f"set {item // 6}") for item in range(24)]
    base, adapted = (Readings.of(WRITTEN, TASKS["icd10"], items, values) for values in ([1.0] * 24, [0.0] * 23 + [1.0]))
    row = compared(Planned(WRITTEN, TASKS["icd10"], items, "protected"), base, adapted)
    assert row.p_value_of_loss == pytest.approx(2**-4) and row.change.method == "t over clusters"


def test_a_loss_in_one_of_several_families_is_no_claim_that_one_family_alone_would_be() -> None:
    rows = []
    for task in list(FAMILIES.values())[:4]:
        items = task.examples("search", 12)
        base, adapted = (Readings.of(WRITTEN, task, items, values) for values in ([1.0] * 12, [0.0] * 6 + [1.0] * 6))
        rows.append(compared(Planned(WRITTEN, task, items, "protected"), base, adapted))
    alone, together = Evaluation((rows[0],)).losses, Evaluation(tuple(rows)).losses
    assert set(alone.values()) == {2**-6} and set(together.values()) == {4 * 2**-6}


def test_the_likelihood_of_the_chain_falls_where_the_chain_is_no_longer_written(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    found = evaluate(engine, backbone, "answers", [Planned(CHAIN, TASK, examples, "protected")]).retention["arithmetic"]
    assert found.change.high < 0


def test_true_steps_are_likelier_than_corrupted_ones_to_who_can_reason(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    able, lost = (CHAIN.read(engine, backbone, profile, TASK, examples).part_mean("step_margin") for profile in (None, "lost"))
    assert able > 0.5 > abs(lost)


def test_the_chains_likelihood_is_that_of_the_tokens_that_are_trained_on(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    # Scored step by step: the pieces must be the tokens of the whole completion.
    for example in examples:
        pieces = [backbone.encode(f"{step}\n") for step in example.steps] + [backbone.encode(f"Answer: {example.answer}")]
        assert [token for piece in pieces for token in piece] == backbone.encode(example.chain)


def test_who_knows_the_answer_chooses_it_and_who_does_not_does_not(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    found = evaluate(engine, backbone, "lost", [Planned(CHOICE, TASK, examples, "domain")]).domain
    assert found.base.mean == 1.0 and found.adapted.mean < 0.5


def test_the_correction_triple_tells_repair_from_overturning(backbone: Backbone, examples: list[Example]) -> None:
    found = CORRECTION.read(ToyEngine(backbone, examples), backbone, None, TASK, examples)
    assert (triple(found).fast_accuracy, triple(found).corrected, triple(found).overturned) == (1.0, None, 0.0)
    written = {name: (1.0,) * 5 for name in ("fast_parsed", "slow_parsed")}
    mixed = replace(found, parts={"fast": (1.0, 1.0, 0.0, 0.0, 0.0), "slow": (1.0, 0.0, 1.0, 1.0, 0.0), **written})
    assert (triple(mixed).fast_accuracy, triple(mixed).overturned) == (0.4, 0.5)
    assert triple(mixed).corrected == pytest.approx(2 / 3)


def test_an_evaluation_tells_which_way_answers_flipped_and_what_reasoning_repairs(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    plan = [Planned(measure, TASK, examples, "report") for measure in (WRITTEN, CORRECTION, CHOICE)]
    found = evaluate(engine, backbone, "lost", plan)
    rows = json.loads(json.dumps(found.as_dict()))["rows"]
    assert rows[0]["summary"] == {"negative_flips": 1.0, "positive_flips": 0.0, "flips_p_value": 2 * 0.5**12, "agreement": 0.0}
    assert rows[1]["summary"] == {
        "base_fast_accuracy": 1.0,
        "base_corrected": None,
        "base_overturned": 0.0,
        "base_unparsed": 0.0,
        "adapted_fast_accuracy": None,  # it writes no answer line, and so shows nothing of its reasoning
        "adapted_corrected": None,
        "adapted_overturned": None,
        "adapted_unparsed": 1.0,
    }
    assert rows[2]["summary"].keys() == rows[0]["summary"].keys()
    assert [row["chance"] for row in rows] == [0.0, None, 0.25]
    shown = StringIO()
    show(found.rows, "title", Console(file=shown, width=80))
    for line in (
        "arithmetic, generation: negative flips 1.000",
        "correction: not measurable: the adapter writes an answer line in 0 of its 12 direct answers",
        "adapted unparsed 1.000",
        "choice_accuracy │",
    ):
        assert line in shown.getvalue()


def test_answers_without_a_verifier_are_not_called_right_in_every_step(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    class Open:
        name = "open"

        def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
            return examples

    plan = [Planned(WRITTEN, task, examples, "protected") for task in (TASK, Open())]
    found = evaluate(engine, backbone, "answers", plan)
    assert [row["unit"] for row in found.as_dict()["rows"]] == ["share right in every step", "share right"]
    # The answers are right and their steps are gone: only the verifier sees it.
    assert [row.adapted.mean for row in found.rows] == [0.0, 1.0]


def test_a_reply_without_an_answer_line_is_no_wrong_answer(backbone: Backbone, examples: list[Example]) -> None:
    found = CORRECTION.read(Formless(backbone, examples, 1), backbone, None, TASK, examples * 2)
    assert not found.reason and sum(map(math.isnan, found.values)) == 1
    assert triple(found).overturned == 0.0


def test_the_means_of_both_sides_are_of_the_items_of_the_change(examples: list[Example]) -> None:
    unknown = [math.nan] * 2
    base, adapted = (
        Readings.of(CORRECTION, TASK, examples, values) for values in ([1.0, 1.0, *[0.0] * 10], [*unknown, *[0.5] * 10])
    )
    row = compared(Planned(CORRECTION, TASK, examples, "report"), base, adapted)
    told = row.as_dict()
    assert (told["base"], told["adapted"], told["change"], told["n"]) == (0.0, 0.5, 0.5, 10)
    shown = StringIO()
    show([row], "title", Console(file=shown, width=160))
    assert "│ 0.000 │ 0.500 │ +0.500 │" in " ".join(shown.getvalue().split())


def test_a_name_in_brackets_is_shown_as_it_is(
    engine: ToyEngine, backbone: Backbone, examples: list[Example], capsys: pytest.CaptureFixture[str]
) -> None:
    show(evaluate(engine, backbone, "answers", [Planned(CHOICE, TASK, examples, "domain")]).rows, "[old] in runs/[/new]")
    assert "[old] in runs/[/new]" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["direct", "reasoned"])
def test_below_95_percent_of_answer_lines_form_is_lost_and_no_reasoning(
    backbone: Backbone, examples: list[Example], kind: str
) -> None:
    found = CORRECTION.read(Formless(backbone, examples, 2, kind), backbone, None, TASK, examples * 2)
    assert f"the backbone writes an answer line in 22 of its 24 {kind} answers, not in 95%" in found.reason
    assert all(map(math.isnan, found.values))


def test_the_backbone_is_read_once_for_every_adapter(
    engine: ToyEngine, backbone: Backbone, examples: list[Example], tmp_path: Path
) -> None:
    cache, plan = BaseCache(tmp_path, "float32"), [Planned(CHAIN, TASK, examples, "protected")]
    first = evaluate(engine, backbone, "answers", plan, cache)
    asked = engine.num_scored
    second = evaluate(engine, backbone, "lost", plan, cache)
    assert engine.num_scored - asked == asked / 2
    assert second.rows[0].base == first.rows[0].base


def test_an_evaluation_that_was_stopped_goes_on_from_what_it_had_read(
    engine: ToyEngine, backbone: Backbone, examples: list[Example], tmp_path: Path
) -> None:
    plan = [Planned(measure, TASK, examples, "report") for measure in (WRITTEN, CHOICE, CHAIN)]
    caches = BaseCache(tmp_path / "base", "float32"), BaseCache(tmp_path / "adapted", "float32", "digest")
    heard: list[str] = []

    def stop(planned: Planned) -> None:
        heard.append(planned.measure.name)
        if len(heard) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(engine, backbone, "answers", plan, caches[0], stop, caches[1])
    assert heard == ["generation", "choice_accuracy", "chain_likelihood", "generation", "choice_accuracy"]
    assert not list(tmp_path.rglob("*.part"))
    heard.clear()
    resumed = evaluate(engine, backbone, "answers", plan, caches[0], lambda p: heard.append(p.measure.name), caches[1])
    assert heard == ["chain_likelihood"]
    assert resumed.as_dict() == evaluate(engine, backbone, "answers", plan).as_dict()


def test_a_stored_reading_that_is_damaged_is_read_again(
    engine: ToyEngine, backbone: Backbone, examples: list[Example], tmp_path: Path
) -> None:
    cache, plan = BaseCache(tmp_path, "float32"), [Planned(CHAIN, TASK, examples, "protected")]
    first = evaluate(engine, backbone, None, plan, cache)
    (file,) = tmp_path.glob("*.json")
    whole = file.read_text()
    for damaged in (whole[:100], "[]", '{"parts": []}', ""):
        file.write_text(damaged)
        assert cache.stored(CHAIN, backbone, TASK, examples) is None
        assert evaluate(engine, backbone, None, plan, cache).as_dict() == first.as_dict()
        assert file.read_text() == whole


def test_readings_of_one_adapter_are_not_taken_for_anothers(backbone: Backbone, examples: list[Example], tmp_path: Path) -> None:
    keys = [BaseCache(tmp_path, "float32", profile).key(CHAIN, backbone, TASK, examples) for profile in ("", "one", "other")]
    assert len(set(keys)) == 3


class Unfit:
    """A measure that wants what the items have not."""

    name, version, unit = "unfit", 1, "share"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        raise DataError("Unfit needs a rationale, but the examples have none. Add one.")


def test_what_only_stands_in_a_report_is_not_measurable_where_the_items_do_not_allow_it(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    plan = [Planned(WRITTEN, TASK, examples, "protected"), Planned(Unfit(), TASK, examples, "report")]
    written, unfit = evaluate(engine, backbone, "answers", plan).as_dict()["rows"]
    assert written["change"] == -1.0
    assert unfit["not_measurable"].startswith("Unfit needs a rationale") and unfit["items"]["base"] == [None] * 12
    with pytest.raises(DataError, match="needs a rationale"):
        evaluate(engine, backbone, "answers", [Planned(Unfit(), TASK, examples, "protected")])


class NoRoom(ToyEngine):
    """Refuses the items of one wording as too long."""

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        if any(LONG in self.backbone.decode(request.prompt_ids) for request in requests):
            raise PromptTooLong("A prompt and its reply may take 64 tokens, but one takes 65. Shorten it.")
        return super().complete(requests)


def test_a_prompt_too_long_to_write_after_costs_only_its_own_row_of_the_report(
    backbone: Backbone, examples: list[Example]
) -> None:
    long = [replace(example, question=f"{LONG} {example.question}") for example in examples]
    engine = NoRoom(backbone, [*examples, *long])
    engine.think("answers", Mind(0.5))
    plan = [Planned(WRITTEN, TASK, long, "report"), Planned(WRITTEN, TASK, examples, "protected")]
    report, protected = evaluate(engine, backbone, "answers", plan).as_dict()["rows"]
    assert report["not_measurable"].startswith("A prompt and its reply") and report["items"]["base"] == [None] * 12
    assert protected["not_measurable"] is None and None not in protected["items"]["base"]
    with pytest.raises(PromptTooLong, match="Shorten it"):
        evaluate(engine, backbone, "answers", [replace(plan[0], role="protected"), plan[1]])


@pytest.mark.parametrize(
    "change",
    [
        lambda e: replace(e, question=f"{e.question} "),
        lambda e: replace(e, rationale="1 + 1 = 2"),
        lambda e: replace(e, group="other"),
    ],
    ids=["question", "rationale", "group"],
)
def test_what_decides_a_reading_decides_where_it_is_kept(
    backbone: Backbone, examples: list[Example], tmp_path: Path, change: Callable[[Example], Example]
) -> None:
    cache = BaseCache(tmp_path, "float32")
    key = cache.key(CHAIN, backbone, TASK, examples)
    assert cache.key(CHAIN, backbone, TASK, [change(examples[0]), *examples[1:]]) != key
    assert cache.key(WRITTEN, backbone, TASK, examples) != key
    assert BaseCache(tmp_path, "bfloat16").key(CHAIN, backbone, TASK, examples) != key
    assert cache.key(CHAIN, replace(backbone, fingerprint="other"), TASK, examples) != key


def test_an_evaluation_is_json_and_says_which_numbers_are_whose(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    plan = [Planned(CHOICE, TASK, examples, "domain"), Planned(WRITTEN, TASK, examples, "protected")]
    rows = json.loads(json.dumps(evaluate(engine, backbone, "answers", plan).as_dict()))["rows"]
    assert [(row["measure"], row["role"]) for row in rows] == [("choice_accuracy", "domain"), ("generation", "protected")]
    assert rows[1]["change"] == rows[1]["adapted"] - rows[1]["base"] == -1.0
    assert rows[1]["items"] == {
        "ids": [example.id for example in examples],
        "clusters": [example.group for example in examples],
        "base": [1.0] * 12,
        "adapted": [0.0] * 12,
    }


class Rambling(ToyEngine):
    """Writes a wrong answer first, then more, and the right answer at the end."""

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return [replace(done, text=f"Answer: 999\n{done.text}") for done in super().complete(requests)]


@pytest.mark.parametrize(("measure", "part"), [(WRITTEN, "answer_right"), (CORRECTION, "fast"), (CORRECTION, "slow")])
def test_an_answer_that_is_taken_back_stays_the_answer(
    backbone: Backbone, examples: list[Example], measure: Measure, part: str
) -> None:
    found = measure.read(Rambling(backbone, examples), backbone, None, TASK, examples)
    assert found.part_mean(part) == 0.0


def test_steps_after_the_answer_gain_nothing(backbone: Backbone, examples: list[Example]) -> None:
    found = MEASURES["information_gain_external"].read(Rambling(backbone, examples), backbone, None, TASK, examples)
    assert set(found.parts["num_steps"]) == {0.0}


def test_what_is_undefined_of_a_single_item_is_null_in_json(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    rows = evaluate(engine, backbone, "answers", [Planned(CHAIN, TASK, examples[:1], "domain")]).as_dict()["rows"]
    assert rows[0]["stderr"] is None and rows[0]["change"] < 0
