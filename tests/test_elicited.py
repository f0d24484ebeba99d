"""Elicited or installed: a constant shift is found out as one, a random update is not, and chance is told apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fitted import fitted_lora, random_steering
from toy_engine import ToyEngine

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from engine.engine import Continuation, GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.elicited import Elicited, answer_texts, chain_texts, elicited, spread
from evaluation.errors import DataError
from evaluation.task import Example, Split, reasoning_prompt
from evaluation.tasks import TASKS

TASK = TASKS["boxes"]


def written_texts(engine: TorchEngine, backbone: Backbone, split: Split, count: int) -> list[Continuation]:
    """Drawn from the adapter, which is therefore better at them than the backbone."""
    prompts = [backbone.chat_ids(reasoning_prompt(example)) for example in TASK.examples(split, count)]
    asked = [
        GenerationRequest(prompt, "one", max_new_tokens=16, temperature=1.0, seed=index) for index, prompt in enumerate(prompts)
    ]
    return [Continuation(prompt, done.token_ids) for prompt, done in zip(prompts, engine.complete(asked), strict=True)]


def index_of(backbone: Backbone, adapter: Adapter, on_progress: Callable[[int, int], None] = lambda done, of: None) -> Elicited:
    engine = TorchEngine(backbone)
    engine.load("one", Profile((adapter,)))
    made_on, judged_on = (written_texts(engine, backbone, split, 24) for split in ("search", "select"))
    names = [str(index) for index in range(len(judged_on))]
    found = elicited(engine, backbone, "one", made_on, judged_on, names, on_progress=on_progress)
    assert engine.loaded == ("one",)
    return found


@pytest.mark.parametrize("layer", [0, 1])
def test_an_adapter_that_is_one_constant_vector_was_elicited_and_the_opposite_sign_was_not(
    backbone: Backbone, layer: int
) -> None:
    found = index_of(backbone, random_steering(backbone, layer, size=2.0))
    assert found.share is not None and found.opposite is not None and found.gain is not None
    assert found.share.value == pytest.approx(1.0, abs=0.02) and found.gain.low > 0
    assert found.opposite.high < 0
    assert all(draw.high < found.share.low for draw in found.random) and len(found.random) == 3
    assert found.verdict == "elicited"


def test_a_vector_holds_only_what_those_below_it_did_not_bring_about(backbone: Backbone) -> None:
    lower, upper = index_of(backbone, random_steering(backbone, 0, size=2.0)).as_dict()["norms"]
    assert upper < 1e-3 * lower


def test_progress_is_told_of_every_reading_and_vector(backbone: Backbone) -> None:
    told: list[tuple[int, int]] = []
    found = index_of(backbone, random_steering(backbone, 0, size=2.0), lambda *now: told.append(now))
    units = 2 + len(found.vectors) + 2 + len(found.random)
    assert told == [(done, units) for done in range(units + 1)]


def test_a_random_update_was_not_elicited(backbone: Backbone) -> None:
    found = index_of(backbone, fitted_lora(backbone, 1))
    assert found.share is not None and found.verdict == "installed"
    assert found.share.value < 0.25


def test_where_nothing_was_gained_nothing_is_measurable(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    engine.load("one", Profile((fitted_lora(backbone, 1).scaled(0.0),)))
    for texts in (answer_texts, chain_texts):
        made_on, judged_on = texts(backbone, TASK.examples("search", 6)), texts(backbone, TASK.examples("select", 6))
        found = elicited(engine, backbone, "one", made_on, judged_on, ["a"] * 6)
    assert found.share is None and "is not shown to be above 0" in found.not_measurable
    assert found.as_dict()["verdict"] == "not measurable"


def test_an_engine_that_shows_no_states_says_so(backbone: Backbone) -> None:
    one, two = Continuation((1,), (2,)), Continuation((1,), (3,))
    found = elicited(ToyEngine(backbone, ()), backbone, "one", [one], [two], ["a"])
    assert found.verdict == "not measurable" and "PyTorch engine" in found.not_measurable


def test_texts_that_made_the_vectors_do_not_judge_them(backbone: Backbone) -> None:
    text = Continuation((1,), (2,))
    with pytest.raises(ValueError, match="share 1. Take them from different splits"):
        elicited(TorchEngine(backbone), backbone, "one", [text], [text], ["a"])


def test_of_an_answer_its_own_words_are_judged_and_not_their_form(backbone: Backbone) -> None:
    example = TASK.examples("search", 1)[0]
    text = answer_texts(backbone, [example])[0]
    assert backbone.decode(text.ids[text.scored_from :]).strip() == example.answer
    assert backbone.decode(text.ids[: text.scored_from]) == "Answer:"


def test_a_chain_without_steps_is_refused(backbone: Backbone) -> None:
    with pytest.raises(DataError, match="'bare' has none. Judge the answers"):
        chain_texts(backbone, [Example(id="bare", question="q", answer="a")])


def test_more_than_five_vectors_are_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="1 to 5 vectors, but got 6"):
        elicited(TorchEngine(backbone), backbone, "one", [], [], [], num_vectors=6)


def test_the_vectors_stand_over_the_whole_depth() -> None:
    assert spread(30, 5) == (3, 9, 15, 21, 27) and spread(2, 5) == (0, 1)
