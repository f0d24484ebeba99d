"""A router sends a prompt to the adapter that it is for, leaves the rest to the backbone, and says how sure it is."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
import torch
from live_service import Live, live, small
from small_releases import promote, random_lora, write_release
from stores import store_at

from adapters.adapter_router import AdapterRouter
from adapters.backbone import Backbone
from adapters.errors import BackboneMismatch, DamagedAdapter, RefusedAdapter
from engine.engine import Continuation, GenerationRequest
from engine.profile import Profile
from engine.routed_engine import RoutedEngine, prompt_states
from engine.torch_engine import TorchEngine
from evaluation.statistics import upper_limit
from evaluation.task import DIRECT, REASON, Example, Split
from registry.release import publish
from service.dispatch import answering
from service.errors import ApiError
from service.lease import Lease, Served, Slot
from service.models import ServedModels
from tuning.router_fit import NEVER, RouterFit, RouterSpec, fit_router, prompts_of, write_router

ROUTED = "auto"


class Listed:
    """Questions about one subject, drawn from a few words that no other subject has."""

    def __init__(self, name: str, words: str) -> None:
        self.name, self._words = name, words.split()

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        draws = [random.Random(f"{self.name}/{split}/{seed}/{place}") for place in range(count)]
        asked = [" ".join(draw.choices(self._words, k=draw.randint(20, 32))) for draw in draws]
        return [Example(f"{self.name}/{split}/{i}", text, "14", group=f"{split}{i}") for i, text in enumerate(asked)]


SKIN = Listed("skin", "skin diseases ear Diagnosis Cholera Vibrio chapter ICD")
SUMS = Listed("sums", "Add take away Start result 12 5 3")
TALK = Listed("talk", "user assistant Think step line End starts with")
SPEC = RouterSpec(items=150, max_astray=0.1)


@pytest.fixture(scope="module")
def engine(session_backbone: Backbone) -> Iterator[TorchEngine]:
    engine = TorchEngine(session_backbone)
    engine.load("skin@1", Profile((random_lora(session_backbone, 1),)))
    engine.load("sums@1", Profile((random_lora(session_backbone, 2),)))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def fitted(engine: TorchEngine, session_backbone: Backbone) -> RouterFit:
    return fit_router(engine, session_backbone, {"skin": SKIN, "sums": SUMS}, [TALK], SPEC)


@pytest.fixture(scope="module")
def routed(engine: TorchEngine, fitted: RouterFit) -> RoutedEngine:
    return RoutedEngine(engine, fitted.router, {"skin": "skin@1", "sums": "sums@1"}, ROUTED)


def prompt(backbone: Backbone, task: Listed, place: int = 0) -> tuple[int, ...]:
    return backbone.chat_ids(task.examples("gate", place + 1)[place].question)


def test_prompts_go_where_they_belong_and_labels_drawn_anew_teach_nothing(fitted: RouterFit) -> None:
    assert fitted.reading.right_low > 0.8
    assert fitted.reading.astray_high < 0.15 and fitted.reading.mistaken < 0.1
    assert fitted.reading.calibration_error < 0.12
    # Three classes of which the adapters' two hold as many prompts as the backbone's each: chance is one in three.
    assert fitted.shuffled.right < 0.6 < fitted.reading.right


def test_the_threshold_bounds_what_goes_astray_on_the_search_split(
    engine: TorchEngine, session_backbone: Backbone, fitted: RouterFit
) -> None:
    asked = prompts_of(session_backbone, {"skin": SKIN, "sums": SUMS}, [TALK], "search", SPEC.items, SPEC.seed)
    states = prompt_states(engine, asked.ids, fitted.router.layer)
    sent = [fitted.router.choose(state).name for state, label in zip(states, asked.classes, strict=True) if label == 0]
    assert upper_limit(sum(name is not None for name in sent), len(sent)) <= SPEC.max_astray


def test_so_few_prompts_that_none_astray_proves_nothing_leave_all_to_the_backbone(
    engine: TorchEngine, session_backbone: Backbone
) -> None:
    spec = RouterSpec(items=20, max_astray=0.01)  # none of 20 astray leaves 14 % open
    told = list[tuple[int, int]]()
    fitted = fit_router(engine, session_backbone, {"skin": SKIN}, [TALK], spec, on_progress=lambda *at: told.append(at))
    assert fitted.router.threshold == NEVER
    assert told == [(40, 120), (80, 120), (120, 120)]  # a train, a search and a select split of two classes


def test_the_instruction_of_a_prompt_is_no_cue(session_backbone: Backbone) -> None:
    asked = prompts_of(session_backbone, {"skin": SKIN}, [TALK], "train", 30, 0)
    texts = [(session_backbone.decode(ids), label) for ids, label in zip(asked.ids, asked.classes, strict=True)]
    for instruction in (REASON, DIRECT):
        shares = [sum(instruction in text for text, label in texts if label == one) / 30 for one in (0, 1)]
        assert shares == [pytest.approx(1 / 3)] * 2


def test_what_is_routed_is_written_and_scored_as_by_the_name_that_was_chosen(
    routed: RoutedEngine, engine: TorchEngine, session_backbone: Backbone
) -> None:
    tasks = {"skin@1": SKIN, "sums@1": SUMS, None: TALK}
    prompts = {name: prompt(session_backbone, task) for name, task in tasks.items()}
    asked = [GenerationRequest(ids, ROUTED, max_new_tokens=8) for ids in prompts.values()]
    own = [GenerationRequest(ids, name, max_new_tokens=8) for name, ids in prompts.items()]
    assert [one.token_ids for one in routed.complete(asked)] == [one.token_ids for one in engine.complete(own)]
    scored = routed.score([Continuation(ids, (5, 6, 7)) for ids in prompts.values()], ROUTED)
    for (name, ids), logprobs in zip(prompts.items(), scored, strict=True):
        assert logprobs == pytest.approx(engine.score([Continuation(ids, (5, 6, 7))], name)[0], abs=1e-5)
    assert scored[0] != pytest.approx(engine.score([Continuation(prompts["skin@1"], (5, 6, 7))])[0], abs=1e-3)


def test_other_names_pass_through_untouched(routed: RoutedEngine, engine: TorchEngine, session_backbone: Backbone) -> None:
    ids = prompt(session_backbone, SKIN)
    for name in (None, "sums@1"):
        (through,), (direct,) = (one.complete([GenerationRequest(ids, name, max_new_tokens=8)]) for one in (routed, engine))
        assert through == direct


def test_a_saved_router_chooses_the_same(fitted: RouterFit, tmp_path: Path) -> None:
    fitted.router.save(tmp_path)
    loaded = AdapterRouter.load(tmp_path)
    assert loaded is not None
    state_H = torch.randn(len(fitted.router.mean_H))
    assert loaded.choose(state_H) == fitted.router.choose(state_H)


def test_a_damaged_router_is_refused(fitted: RouterFit, tmp_path: Path) -> None:
    fitted.router.save(tmp_path)
    (tmp_path / "router.json").write_text('{"names": []}')
    with pytest.raises(DamagedAdapter, match="Fit it again"):
        AdapterRouter.load(tmp_path)


def test_a_router_with_one_name_twice_is_refused(fitted: RouterFit) -> None:
    with pytest.raises(RefusedAdapter, match="which differ"):
        replace(fitted.router, names=("skin", "skin"))


def test_a_router_that_reads_what_this_backbone_has_not_is_refused(fitted: RouterFit, session_backbone: Backbone) -> None:
    router = fitted.router
    with pytest.raises(RefusedAdapter, match="2 layers of"):
        replace(router, layer=2).check(session_backbone)
    narrow = replace(router, mean_H=router.mean_H[1:], scale_H=router.scale_H[1:], weights_CH=router.weights_CH[:, 1:])
    with pytest.raises(RefusedAdapter, match="Fit it again"):
        narrow.check(session_backbone)


def test_too_few_texts_of_ones_own_for_every_split_are_refused(engine: TorchEngine, session_backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="select has none"):
        fit_router(engine, session_backbone, {"skin": SKIN}, [], RouterSpec(items=20), own=["a", "b", "c"])


def test_a_router_of_another_backbone_is_refused(fitted: RouterFit, session_backbone: Backbone) -> None:
    with pytest.raises(BackboneMismatch, match="fit the router again"):
        replace(fitted.router, backbone_fingerprint="0" * 64).check(session_backbone)


def test_a_state_that_is_not_finite_goes_to_the_backbone(fitted: RouterFit) -> None:
    assert fitted.router.choose(torch.full((len(fitted.router.mean_H),), math.nan)).name is None


def test_a_name_that_is_a_router_by_now_leaves_its_prompts_to_the_backbone(fitted: RouterFit) -> None:
    slots = {"skin": Slot(Served("skin@2", None, "", router=fitted.router)), "base": Slot(Served("base", None, ""))}
    given_back: list[Slot] = []

    async def lease(name: str) -> Lease:
        return Lease(slots[name], given_back.append)

    models = cast(ServedModels, SimpleNamespace(lease=lease, backbone_id="base"))
    found, missing = asyncio.run(answering(models, "auto@1", "skin"))
    assert (found.served.id, missing) == ("base", "is_a_router")
    assert [slot.served.id for slot in given_back] == ["skin@2"]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path, session_backbone: Backbone, fitted: RouterFit
) -> Iterator[Live]:
    """skin 1 is a champion, sums was never promoted, and auto 1 chooses between both and the backbone."""
    folder = tmp_path_factory.mktemp("routed")
    tracking = store_at(folder / "home")
    for name, seed in (("skin", 1), ("sums", 2)):
        write_release(folder / name, session_backbone, random_lora(session_backbone, seed))
        publish(tracking, name, folder / name)
    targets = {"skin": "skin@1", "sums": "sums@1"}
    write_router(folder / "auto", fitted, session_backbone, targets, {"skin": SKIN, "sums": SUMS}, [TALK], SPEC)
    publish(tracking, "auto", folder / "auto")
    for name in ("skin", "auto"):
        promote(tracking, name, 1)
    with live(small(backbone_directory, folder / "home")) as server:
        yield server


def asked(server: Live, model: str, task: Listed, **fields: object) -> httpx.Response:
    question = task.examples("gate", 1)[0].question
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 12, "temperature": 0, **fields}
    return httpx.post(f"{server.openai_url}/chat/completions", json=body)


def test_auto_answers_as_the_champion_it_chose_and_says_so(server: Live, base: str) -> None:
    reply, named, backbones = (asked(server, model, SKIN).json() for model in ("auto", "skin", base))
    assert reply["model"] == "skin@1"
    written, by_name, without = (one["choices"][0]["message"]["content"] for one in (reply, named, backbones))
    assert written == by_name != without
    told = reply["graftline"]
    assert (told["router"], told["chosen"], told["likeliest"]) == ("auto@1", "skin@1", "skin")
    assert told["probability"] >= told["threshold"] and sum(told["probabilities"].values()) == pytest.approx(1, abs=1e-3)


def test_auto_leaves_to_the_backbone_what_is_its_own(server: Live, base: str) -> None:
    reply = asked(server, "auto", TALK).json()
    assert reply["model"] == reply["graftline"]["chosen"] == base


def test_a_choice_that_nothing_answers_for_is_told_and_the_backbone_answers(server: Live, base: str) -> None:
    told = asked(server, "auto", SUMS).json()["graftline"]
    assert (told["likeliest"], told["chosen"], told["not_available"]) == ("sums", base, "model_not_found")


def test_a_stream_tells_the_decision_where_it_ends(server: Live) -> None:
    text = asked(server, "auto", SKIN, stream=True).text
    assert '"chosen": "skin@1"' in text.split("data: ")[-2]


def test_several_prompts_at_once_are_refused(server: Live) -> None:
    reply = httpx.post(f"{server.openai_url}/completions", json={"model": "auto", "prompt": ["a", "b"]})
    assert reply.status_code == 400 and "Send them apart" in reply.json()["error"]["message"]


def test_a_router_is_no_adapter_to_be_loaded_under_another_name(server: Live) -> None:
    with pytest.raises(ApiError, match="writes nothing itself"):
        server.parts.run_time.load("mine", "auto@1")


def test_every_lease_is_given_back(server: Live) -> None:
    for task in (SKIN, SUMS, TALK):
        asked(server, "auto", task)
    assert all(slot.uses == 0 for slot in server.parts.models._slots.values())
    assert server.parts.models._backbone.uses == 0
