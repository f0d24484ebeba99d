"""The harvest: which places are read, in which shares, and that it goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from idle_engine import IdleEngine
from test_user_data import jsonl, rows

from adapters.backbone import Backbone
from adapters.softcot import states_at_layer
from engine.engine import Completion, GenerationRequest
from engine.errors import EngineError
from engine.torch_engine import TorchEngine
from evaluation.errors import UnreadableFile
from evaluation.places import CHAIN, QUESTION, TEXT, Places, own_chains, read_places
from evaluation.task import reasoning_prompt
from evaluation.tasks.alchemy import ALCHEMY
from tuning.errors import BadRecipe
from tuning.harvest import HarvestSpec, harvested

SPEC = HarvestSpec(tasks=("alchemy",), texts=("icd10",), places=600, texts_per_shard=16, max_new_tokens=64)


class Counting(TorchEngine):
    """Counts the chains that it writes; mute, it ends every reply at once."""

    written, mute = 0, False

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.written += len(requests)
        found = super().complete(requests)
        return [Completion("", (), (), "stop", one.prompt_tokens) for one in found] if self.mute else found


@pytest.fixture
def engine(testbed: Backbone) -> Counting:
    return Counting(testbed, max_rows=16)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, testbed: Backbone) -> Path:
    """With one harvest in it."""
    directory = tmp_path_factory.mktemp("harvest")
    harvested(TorchEngine(testbed, max_rows=16), testbed, SPEC, directory)
    return directory


def test_half_of_the_places_are_of_chains_and_the_rest_as_asked(testbed: Backbone, engine: Counting, home: Path) -> None:
    places = harvested(engine, testbed, SPEC, home)
    counts = places.counts()
    assert len(places) >= SPEC.places and sum(counts.values()) == len(places)
    assert counts["chain"] / len(places) == pytest.approx(0.5, abs=0.05)
    assert counts["question"] / len(places) == pytest.approx(0.3, abs=0.05)
    assert engine.written == 0, "what is there is not made again"


def test_more_places_go_on_after_the_shards_that_are_there(testbed: Backbone, engine: Counting, home: Path) -> None:
    before = harvested(engine, testbed, SPEC, home)
    more = harvested(engine, testbed, SPEC.model_copy(update={"places": len(before) + 1}), home)
    assert len(more) > len(before) and engine.written == SPEC.texts_per_shard
    for part in ("ids_N", "kind_N", "text_N", "states_NH"):
        assert torch.equal(getattr(more, part)[: len(before)], getattr(before, part))
    assert int(more.text_N.max()) > int(before.text_N.max())


def test_a_place_holds_the_state_at_its_token_and_no_text_its_first(testbed: Backbone) -> None:
    engine, examples = TorchEngine(testbed), ALCHEMY.examples("train", 2)
    chains = own_chains(engine, testbed, examples, 64)
    texts = [[(token, QUESTION) for token in chain.prompt_ids] + [(token, CHAIN) for token in chain.ids] for chain in chains]
    places = read_places(engine, texts, layer=2)
    first = places[places.text_N == 0]
    whole = [*chains[0].prompt_ids, *chains[0].ids]
    assert first.ids_N.tolist() == whole[1:]
    expected_NH = states_at_layer(testbed, whole, depth=3)[1:]
    torch.testing.assert_close(first.states_NH.float(), expected_NH, rtol=0.02, atol=0.02)
    assert [len(text) for text in places.texts()] == [len(text) - 1 for text in texts]


def test_chains_are_the_backbones_own_without_the_token_that_ends_them(testbed: Backbone) -> None:
    engine, examples = TorchEngine(testbed), ALCHEMY.examples("train", 4)
    for chain, example in zip(own_chains(engine, testbed, examples, 64), examples, strict=True):
        assert testbed.decode(chain.ids).strip() == example.chain
        assert chain.prompt_ids == testbed.chat_ids(reasoning_prompt(example))
        assert not testbed.stop_ids & set(chain.ids)


def test_a_torn_shard_is_told(testbed: Backbone, engine: Counting, tmp_path: Path) -> None:
    harvested(engine, testbed, SPEC.model_copy(update={"places": 1}), tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UnreadableFile, match="Delete it"):
        Places.load(file)


def test_a_backbone_that_writes_no_chain_is_refused(testbed: Backbone, engine: Counting, tmp_path: Path) -> None:
    engine.mute = True
    with pytest.raises(BadRecipe, match="wrote none to alchemy"):
        harvested(engine, testbed, SPEC, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_tasks_that_run_dry_are_told_with_what_they_gave(testbed: Backbone, engine: Counting, tmp_path: Path) -> None:
    file = jsonl(tmp_path, rows())
    spec: dict[str, Any] = {"tasks": (str(file),), "texts": (), "places": 100_000}
    with pytest.raises(BadRecipe, match="100000 places were asked for, but .* gave"):
        harvested(engine, testbed, SPEC.model_copy(update=spec), tmp_path)


def test_an_engine_that_shows_no_states_is_refused(testbed: Backbone) -> None:
    with pytest.raises(EngineError, match="shows no hidden states"):
        read_places(IdleEngine(), [[(1, TEXT), (2, TEXT)]], 0)


def test_shares_leave_room_for_chains() -> None:
    with pytest.raises(ValueError, match="leave room for chains"):
        HarvestSpec(question_share=0.6, text_share=0.4)


def test_another_layer_is_another_harvest(testbed: Backbone) -> None:
    assert SPEC.key(testbed) == SPEC.model_copy(update={"places": 9}).key(testbed)
    assert SPEC.key(testbed) != SPEC.model_copy(update={"layer": 1}).key(testbed)
