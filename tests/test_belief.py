"""Theory of mind: stories without a shortcut, and minds that are told from those that only seem to have one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from idle_engine import IdleEngine

from adapters.backbone import REASONER, Backbone
from engine.engine import Continuation
from engine.torch_engine import TorchEngine
from evaluation.admission import admit
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.measure import Readings, Summarising
from evaluation.measures import MEASURES
from evaluation.retention import gate_measure, is_written, search_measure
from evaluation.task import Example, answer_line
from evaluation.tasks.belief import BELIEF, ORDERS, Asked

BELIEFS = MEASURES["belief"]
Leaning = Callable[[Example, str], float]  # nats by which a mind prefers to write a container


@dataclass
class Minds(IdleEngine):
    """An engine that knows the stories: every token of a container costs a nat, and the first gets what the mind leans by."""

    backbone: Backbone
    examples: Sequence[Example]
    base: Leaning
    adapted: Leaning
    listed_first: float = 0.0  # what being named first among the options is worth
    minds: Mapping[str | None, Leaning] = field(init=False)

    def __post_init__(self) -> None:
        self.minds = {None: self.base, "adapted": self.adapted}

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        prefix, found = len(self.backbone.encode(answer_line("").rstrip())), []
        for asked in continuations:
            prompt = self.backbone.decode(asked.prompt_ids)
            example = next(example for example in self.examples if example.question in prompt)
            said = self.backbone.decode(asked.ids).removeprefix("Answer:").strip()
            liked = self.minds[profile](example, said) + self.listed_first * (f"Options: {said};" in prompt)
            found.append((-9.0,) * prefix + (liked - 50.0,) + (0.0,) * (len(asked.ids) - prefix - 1))
        return found


def knowing(example: Example, said: str) -> float:
    return float(said == example.answer)


def reality(example: Example, said: str) -> float:
    """Answers everything by where the thing is."""
    return float(said == answer_of(example, "reality"))


def mixed(example: Example, said: str) -> float:
    return 0.5 * knowing(example, said) + 0.5 * reality(example, said)


def leaning_more(example: Example, said: str) -> float:
    return knowing(example, said) + 3 * reality(example, said)


def fainter(example: Example, said: str) -> float:
    return 0.4 * knowing(example, said)


def indifferent(example: Example, said: str) -> float:
    return 0.0


def answer_of(example: Example, order: str) -> str:
    return next(other.answer for other in ALL if other.id == f"{example.id.rpartition('/')[0]}/{order}")


ALL = BELIEF.examples("search", 96, seed=5)


def row(backbone: Backbone, base: Leaning, adapted: Leaning, listed_first: float = 0.0) -> Row:
    engine = Minds(backbone, ALL, base, adapted, listed_first)
    return evaluate(engine, backbone, "adapted", [Planned(BELIEFS, BELIEF, ALL, "protected")]).rows[0]


def read(backbone: Backbone, mind: Leaning, listed_first: float = 0.0) -> Readings:
    return row(backbone, knowing, mind, listed_first).adapted


def story(example: Example) -> str:
    return example.question.rpartition(". ")[0]


def containers(example: Example) -> list[str]:
    """In the order of their mention."""
    return re.findall("|".join(example.choices or ()), story(example))


def test_twins_differ_in_what_the_owner_saw_and_in_nothing_else() -> None:
    for start in range(0, 96, 8):
        seen, unseen = (re.split(r"(?<=\.) ", story(ALL[start + offset])) for offset in (0, 4))
        differing = [index for index, (one, other) in enumerate(zip(seen, unseen, strict=True)) if one != other]
        assert differing and set(differing) <= {2, 3}  # who saw what


def test_the_four_questions_of_a_true_and_of_a_false_belief_by_hand() -> None:
    for start in range(0, 96, 8):
        first, last = (answer_of(ALL[start], order) for order in ("memory", "reality"))
        knows = "knows this" in ALL[start].question
        answers = [example.answer for example in ALL[start : start + 8]]
        assert answers[:4] == [last, first, last, last if knows else first]
        assert answers[4:] == [last, first, first, first if knows else last]


@pytest.mark.parametrize("place", [0, -1])
def test_the_container_that_is_mentioned_first_or_last_is_right_half_of_the_time(place: int) -> None:
    items = ALL[:64]
    for order in ORDERS:
        asked = [example for example in items if example.id.endswith(order)]
        assert sum(containers(example)[place] == example.answer for example in asked) == len(asked) / 2


def test_the_container_that_is_mentioned_most_is_right_half_of_the_time() -> None:
    hits = [Counter(containers(example)).most_common(1)[0][0] == example.answer for example in ALL[:64]]
    assert sum(hits) == 32


def test_whether_the_owner_stays_does_not_tell_what_they_believe() -> None:
    first = [example for example in ALL[:64] if example.id.endswith("first")]
    stayed_and_saw = [("stays" in e.question) == (e.answer == answer_of(e, "reality")) for e in first]
    assert sum(stayed_and_saw) == len(first) / 2


def test_the_first_order_does_not_answer_the_second() -> None:
    second = [example for example in ALL[:64] if example.id.endswith("second")]
    assert sum(example.answer == answer_of(example, "first") for example in second) == len(second) / 2


def test_the_words_are_drawn_anew_in_every_set() -> None:
    words = [example.group for example in ALL]
    assert len(set(words)) == len(ALL) / 8


def test_a_mind_that_knows_is_right_on_all(backbone: Backbone) -> None:
    found = read(backbone, knowing)
    assert set(found.values) == {1.0}
    assert {found.part_mean(part) for part in ("right", "pair", "quadruple")} == {1.0}


def test_a_mind_that_answers_reality_gets_all_true_beliefs_and_no_story(backbone: Backbone) -> None:
    found = read(backbone, reality)
    first = {
        twin: [r for r, e in zip(found.parts["right"], ALL, strict=True) if f"/{twin}-" in e.id and e.id.endswith("first")]
        for twin in ("true", "false")
    }
    assert set(first["true"]) == {1.0} and set(first["false"]) == {0.0}
    assert found.part_mean("right") == 0.5
    assert (found.part_mean("pair"), found.part_mean("quadruple")) == (0.0, 0.0)
    assert found.mean == pytest.approx(0.0)


def test_leaning_more_to_reality_is_no_gain_though_true_beliefs_grow_likelier(backbone: Backbone) -> None:
    found = row(backbone, knowing, leaning_more)
    assert found.change.mean == pytest.approx(0.0)
    assert found.adapted.part_mean("false_belief") < found.base.part_mean("false_belief")
    assert (found.summary["base_quadruple"], found.summary["adapted_quadruple"]) == (1.0, 0.0)
    assert (found.summary["quadruple_flips_p_value"] or 1.0) < 0.001


def test_an_unchanged_mind_changes_exactly_nothing(backbone: Backbone) -> None:
    assert set(row(backbone, knowing, knowing).change.per_item) == {0.0}


def test_a_fainter_mind_is_seen_before_an_answer_turns(backbone: Backbone) -> None:
    found = row(backbone, knowing, fainter)
    assert found.change.high < 0
    assert found.adapted.part_mean("right") == 1.0


def test_few_story_sets_are_as_uncertain_as_sets_and_not_as_their_items(backbone: Backbone) -> None:
    # Of eight sets one was lost altogether: 8 items of 64 agree, and they are one story.
    lost = ALL[0].group
    examples = ALL[:64]
    engine = Minds(backbone, ALL, knowing, lambda example, said: knowing(example, said) * (example.group != lost))
    planned = Planned(BELIEFS, BELIEF, examples, "protected")
    change = evaluate(engine, backbone, "adapted", [planned]).rows[0].change  # type: ignore[arg-type]
    assert change.method == "t over clusters" and change.mean == -0.125 and change.low < -0.4 < 0 < change.high
    engine = Minds(backbone, ALL, knowing, fainter)
    assert evaluate(engine, backbone, "adapted", [planned]).rows[0].change.high < 0  # type: ignore[arg-type]


def test_one_story_set_is_no_sign_that_the_backbone_can_follow_a_story(backbone: Backbone) -> None:
    engine = Minds(backbone, ALL, knowing, knowing)
    assert "which is not clear of 0" in BELIEFS.read(engine, backbone, None, BELIEF, ALL[:8]).reason  # type: ignore[arg-type]


def test_what_is_listed_first_is_worth_nothing(backbone: Backbone) -> None:
    assert read(backbone, knowing, listed_first=5.0).values == pytest.approx((1.0,) * len(ALL))


def test_where_the_answer_is_not_real_the_margin_is_against_reality(backbone: Backbone) -> None:
    found = read(backbone, mixed)
    for true, false, example in zip(found.parts["true_belief"], found.parts["false_belief"], ALL, strict=True):
        known, real = true if true == true else false, example.answer == answer_of(example, "reality")
        assert (false == false, true == true) == ((not real, real) if Asked.of(example).is_about_belief else (False, False))
        if known == known:
            assert known == pytest.approx(1.0 if real else mixed(example, example.answer) - 0.5)


def test_a_backbone_without_a_margin_on_true_beliefs_cannot_show_a_loss(backbone: Backbone) -> None:
    found = row(backbone, indifferent, knowing)
    assert "margin on true beliefs is +0.0000" in found.not_measurable
    assert all(value != value for value in found.base.values)


def test_a_backbone_that_answers_everything_by_reality_cannot_show_a_loss(backbone: Backbone) -> None:
    found = row(backbone, reality, indifferent)
    assert "keeps the two containers apart by +0.0000" in found.not_measurable


@pytest.mark.slow
def test_the_reasoner_answers_by_reality_and_belief_is_not_measurable_on_it() -> None:
    reasoner = Backbone.load(REASONER, device="cpu")
    found = BELIEFS.read(TorchEngine(reasoner, max_rows=64), reasoner, None, BELIEF, ALL[:48])
    assert found.part_mean("true_belief") > 0.5 and found.part_mean("false_belief") < -0.5
    assert "not clear of 0" in found.reason and all(value != value for value in found.values)


def test_an_adapter_that_lost_its_margin_has_lost_and_is_measurable(backbone: Backbone) -> None:
    found = row(backbone, knowing, indifferent)
    assert not found.not_measurable and found.change.high < 0


def test_a_story_that_is_cut_off_is_not_joint(backbone: Backbone) -> None:
    engine = Minds(backbone, ALL, knowing, knowing)
    found = BELIEFS.read(engine, backbone, None, BELIEF, ALL[:11])
    assert [index for index, value in enumerate(found.parts["quadruple"]) if value == value] == [3, 7]


def test_other_tasks_hold_no_story(backbone: Backbone) -> None:
    engine = Minds(backbone, ALL, knowing, knowing)
    found = BELIEFS.read(engine, backbone, None, BELIEF, [replace(ALL[0], id="x/1")])
    assert found.reason == "belief is read of stories with four questions, which 'belief' is not"
    assert found.values[0] != found.values[0]
    assert isinstance(BELIEFS, Summarising) and set(BELIEFS.summary(found, found).values()) == {None}


def test_it_guards_its_own_task_and_is_not_admitted_where_the_backbone_knows_no_story(backbone: Backbone) -> None:
    assert search_measure(BELIEF) == gate_measure(BELIEF) == BELIEFS and not is_written(BELIEF)
    engine = Minds(backbone, ALL, indifferent, indifferent)
    found = admit(engine, backbone, BELIEFS, BELIEF, chance=None, items=len(ALL))
    assert not found.admitted and "margin on true beliefs" in found.reasons[0]
