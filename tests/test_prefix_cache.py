"""The prefix cache: what was read once is not read again, and never by whom it does not belong to."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from fitted import fitted_lora
from stepped import Stepped
from test_chunks import KINDS, assert_same, loaded, prompt_of

from adapters.adapter import Prompt
from adapters.backbone import Backbone
from engine.engine import GenerationRequest
from engine.errors import NotFinite
from engine.prefix import BLOCK, Content, PrefixIndex, Reader, contents
from engine.profile import Profile
from engine.torch_engine import TorchEngine


@pytest.fixture
def keeping(backbone: Backbone) -> Iterator[Stepped]:
    engine = loaded(backbone, prefill_chunk_tokens=64, max_prefix_tokens=2048)
    yield Stepped(engine)
    engine.close()


@pytest.fixture
def plain(backbone: Backbone) -> Iterator[TorchEngine]:
    engine = loaded(backbone)
    yield engine
    engine.close()


def cached(stepped: Stepped, request: GenerationRequest) -> int:
    (done,) = stepped.write([request])
    assert done.journey is not None
    return done.journey.cached_tokens


@pytest.mark.parametrize("profile", KINDS)
def test_a_prompt_that_was_read_before_is_not_read_again_and_writes_the_same(
    keeping: Stepped, plain: TorchEngine, profile: str | None
) -> None:
    first = GenerationRequest(prompt_of(plain.backbone, 90), profile, 6)
    second = GenerationRequest((*first.prompt_ids[:70], *prompt_of(plain.backbone, 30, 1)), profile, 6)
    (expected,) = plain.complete([second])
    keeping.write([first])
    before = keeping.engine.stats()
    (row,) = keeping.submit(second)
    seats = row.seats
    keeping.run()
    done, after = row.completion(), keeping.engine.stats()
    assert_same(done, expected)
    shared = 70 // BLOCK * BLOCK
    assert done.journey is not None and done.journey.cached_tokens == shared
    assert after.cached_tokens - before.cached_tokens == len(seats) * shared
    assert after.prompt_tokens - before.prompt_tokens == sum(len(seat.prompt.ids) - shared for seat in seats)


def test_the_whole_of_a_prompt_is_never_taken_from_what_is_kept(keeping: Stepped, backbone: Backbone) -> None:
    # Somebody has to say what follows its last token.
    request = GenerationRequest(prompt_of(backbone, 4 * BLOCK), None, 2)
    assert cached(keeping, request) == 0
    assert cached(keeping, request) == 3 * BLOCK


@pytest.mark.parametrize(("one", "two"), [(None, "lora"), ("lora", "other"), ("lora", None), ("steered", None), ("lora", "both")])
def test_what_one_adapter_has_read_is_nothing_to_another(
    keeping: Stepped, plain: TorchEngine, one: str | None, two: str | None
) -> None:
    ids = prompt_of(plain.backbone, 80)
    keeping.write([GenerationRequest(ids, one, 3)])
    asked = GenerationRequest(ids, two, 6)
    (done,) = keeping.write([asked])
    assert done.journey is not None and done.journey.cached_tokens == 0
    assert_same(done, plain.complete([asked])[0])


def test_soft_thoughts_alone_share_with_the_backbone_what_stands_before_them(keeping: Stepped, plain: TorchEngine) -> None:
    ids = prompt_of(plain.backbone, 100)
    soft = plain.profile("soft").transform(plain.backbone, ids)
    keeping.write([GenerationRequest(ids, None, 3)])
    asked = GenerationRequest(ids, "soft", 6)
    (done,) = keeping.write([asked])
    assert done.journey is not None
    assert done.journey.cached_tokens == soft.soft_at // BLOCK * BLOCK < len(ids) // BLOCK * BLOCK
    assert_same(done, plain.complete([asked])[0])


def test_other_soft_thoughts_before_the_same_tokens_are_another_text() -> None:
    soft_KH = torch.randn(3, 4)
    prompts = [Prompt(tuple(range(40)), thoughts, 20) for thoughts in (soft_KH, soft_KH + 1e-3, None)]
    one, two, none = (contents(prompt) for prompt in prompts)
    assert one[0] == two[0] == none[0] and len({one[1], two[1], none[1]}) == 3
    assert contents(prompts[0]) == one


def test_weights_that_were_refreshed_never_meet_what_the_old_ones_read(backbone: Backbone) -> None:
    engine = TorchEngine(backbone, max_prefix_tokens=512)
    lora, stepped = fitted_lora(backbone, 1), Stepped(engine)
    engine.load("live", Profile((lora,)))
    asked = GenerationRequest(prompt_of(backbone, 60), "live", 5)
    stepped.write([asked])
    assert engine.stats().prefix_tokens > 0
    with lora.attach(backbone), torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.05)
    engine.refresh("live")
    assert engine.stats().prefix_tokens == 0
    (done,) = stepped.write([asked])
    assert done.journey is not None and done.journey.cached_tokens == 0
    fresh = TorchEngine(backbone)
    fresh.load("live", Profile((lora,)))
    assert_same(done, fresh.complete([asked])[0])


def test_an_adapter_that_is_unloaded_takes_along_what_it_has_read(keeping: Stepped, backbone: Backbone) -> None:
    asked = [GenerationRequest(prompt_of(backbone, 60), profile, 2) for profile in ("lora", None)]
    keeping.write(asked)
    whole = keeping.engine.stats().prefix_tokens
    keeping.engine.unload("lora")
    assert keeping.engine.stats().prefix_tokens == whole // 2
    keeping.engine.load("lora", Profile((fitted_lora(backbone, 9),)))
    assert [cached(keeping, request) > 0 for request in asked] == [False, True]


def test_tenants_of_different_salts_share_nothing(keeping: Stepped, backbone: Backbone) -> None:
    ids = prompt_of(backbone, 60)
    asked = [GenerationRequest(ids, None, 2, cache_salt=salt) for salt in ("a", "a", "b", "")]
    assert [cached(keeping, request) > 0 for request in asked] == [False, True, False, False]


def test_the_next_prompt_of_a_conversation_begins_with_the_reply_that_was_written(keeping: Stepped, plain: TorchEngine) -> None:
    asked = GenerationRequest(prompt_of(plain.backbone, 40), "lora", 40)
    (first,) = keeping.write([asked])
    said = (*asked.prompt_ids, *first.token_ids)
    following = GenerationRequest((*said, *prompt_of(plain.backbone, 20, 1)), "lora", 6)
    (second,) = keeping.write([following])
    assert second.journey is not None and second.journey.cached_tokens == (len(said) - 1) // BLOCK * BLOCK > 40
    assert_same(second, plain.complete([following])[0])


def test_a_row_that_was_not_finite_leaves_nothing(keeping: Stepped, plain: TorchEngine) -> None:
    huge = fitted_lora(plain.backbone, 6)
    for tensor in huge.tensors().values():
        tensor.mul_(1e30)
    keeping.engine.load("huge", Profile((huge,)))
    (row,) = keeping.submit(GenerationRequest(prompt_of(plain.backbone, 200), "huge", 4))
    keeping.step()
    assert isinstance(row.error, NotFinite) and row.read <= 64  # the first chunk tells: the others are never read
    assert keeping.engine.stats().prefix_tokens == 0
    asked = [GenerationRequest(prompt_of(plain.backbone, 150, place), profile, 6) for place, profile in enumerate(KINDS)]
    for done, expected in zip(keeping.write(asked), plain.complete(asked), strict=True):
        assert_same(done, expected)


def test_what_is_kept_is_bounded_and_the_least_recently_used_leaves_first(backbone: Backbone) -> None:
    stepped = Stepped(TorchEngine(backbone, max_prefix_tokens=8 * BLOCK))
    asked = [GenerationRequest(prompt_of(backbone, 3 * BLOCK + 1, place), None, 1) for place in range(3)]
    for request in (asked[0], asked[1], asked[0], asked[2]):
        stepped.write([request])
        assert stepped.engine.stats().prefix_tokens <= 8 * BLOCK
    assert cached(stepped, asked[0]) == 3 * BLOCK
    assert cached(stepped, asked[1]) < 3 * BLOCK


def test_a_cache_of_no_tokens_keeps_none(backbone: Backbone) -> None:
    stepped, asked = Stepped(TorchEngine(backbone)), GenerationRequest(prompt_of(backbone, 60), None, 2)
    assert [cached(stepped, asked) for _ in range(2)] == [0, 0]


def test_the_same_call_gives_the_same_bits_with_a_prefix_cache(backbone: Backbone) -> None:
    engine = TorchEngine(backbone, max_rows=2, max_prefix_tokens=1024)
    asked = [GenerationRequest(prompt_of(backbone, 50 + place), None, 5, temperature=0.8) for place in range(5)]
    assert engine.complete(asked) == engine.complete(asked)
    assert engine.stats().cached_tokens > 0


@pytest.mark.parametrize("seed", range(3))
def test_rows_at_random_write_what_they_write_alone_whatever_is_kept(backbone: Backbone, plain: TorchEngine, seed: int) -> None:
    draw = random.Random(seed)
    stepped = Stepped(loaded(backbone, prefill_chunk_tokens=32, max_rows=4, max_prefix_tokens=20 * BLOCK))
    beginnings = [prompt_of(backbone, 70, place) for place in range(2)]
    asked = []
    for place in range(16):
        ids = (*draw.choice(beginnings)[: draw.randrange(10, 70)], *prompt_of(backbone, draw.randrange(9, 40), 2 + place % 2))
        asked.append(GenerationRequest(ids, draw.choice(KINDS), draw.randrange(1, 20)))
    left = list(asked)
    while left or stepped.engine._scheduler.is_busy:
        if left and draw.random() < 0.5:
            stepped.submit(left.pop(0))
        stepped.step()
    assert stepped.engine.stats().cached_tokens > 0
    for request, row in zip(asked, stepped.rows, strict=True):
        assert_same(row.completion(), plain.complete([request])[0])
    stepped.engine.close()


def test_the_index_finds_only_what_was_added_and_gives_no_place_twice() -> None:
    draw = random.Random(1)
    index, held = PrefixIndex(12), dict[int, tuple[Reader, tuple[Content, ...]]]()
    for _ in range(2000):
        reader = Reader(draw.randrange(2), draw.choice(["", "a"]))
        wanted = [Content((draw.randrange(3),)) for _ in range(draw.randrange(6))]
        if draw.random() < 0.02:
            index.drop(lambda one: one.source == 1)
        elif draw.random() < 0.5:
            for count, place in enumerate(index.find(reader, wanted), 1):
                assert held[place] == (reader, tuple(wanted[:count]))
        else:
            known, places = index.add(reader, wanted)
            for offset, place in enumerate(places, known + 1):
                held[place] = (reader, tuple(wanted[:offset]))
            numbers = {node.number for node in index._nodes.values()}
            assert all(before in numbers for before, _ in index._nodes if isinstance(before, int)), "nothing finds an orphan"
            assert len(index) <= 12 and len(places) == len(set(places)) and all(0 <= place < 12 for place in places)
            assert index.find(reader, wanted)[known:] == places


def test_a_text_longer_than_the_index_keeps_its_beginning() -> None:
    index, wanted = PrefixIndex(3), [Content((number,)) for number in range(5)]
    assert index.add(Reader(0), wanted) == (0, [0, 1, 2])
    assert index.find(Reader(0), wanted) == [0, 1, 2]
    assert index.add(Reader(0, "other"), wanted)[1] and index.find(Reader(0), wanted) == []
