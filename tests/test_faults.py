"""Whatever is broken, no answer is another adapter's, no accepted request is lost without an error, and the rest goes on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_service import Live, live, small
from plain_server import answering
from stores import store_at

from adapters.backbone import Backbone
from benchmarks.fault_trials import FAULTS, Size, Target
from benchmarks.fault_world import NAMES, Tally, Traffic, World, new_world
from benchmarks.own_names import name_tokens, saying
from engine.engine import GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from registry.errors import lacks_room
from service.errors import without_paths

SMALL = Size(promotions=10, hang_ups=24, away_s=0.6, readers=1, settle_s=15.0)
HERE = [name for name in FAULTS if name != "killed_worker"]  # which needs a worker of its own


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, session_backbone: Backbone, base: str) -> World:
    folder = tmp_path_factory.mktemp("faults")
    store_at(folder / "home")
    return new_world(folder, session_backbone, base, pause_s=0.03)


@pytest.fixture(scope="module")
def server(world: World, backbone_directory: Path) -> Iterator[Live]:
    with live(small(backbone_directory, world.home, send_timeout_s=1.0)) as server:
        yield server


@pytest.mark.parametrize("fault", HERE)
def test_the_service_holds(fault: str, world: World, server: Live, session_backbone: Backbone) -> None:
    outcome = FAULTS[fault](world, Target(server.url, os.getpid, session_backbone), SMALL)
    assert outcome.held, f"{outcome.told}; wrong {outcome.tally.wrong[:3]}, lost {outcome.tally.lost[:3]}"
    assert outcome.tally.answered.total() > 0


def test_an_adapter_says_its_own_name_whatever_it_is_asked(session_backbone: Backbone) -> None:
    engine = TorchEngine(session_backbone)
    tokens = name_tokens(session_backbone, 4)
    for token in tokens:
        engine.load(str(token), Profile((saying(session_backbone, token),)))
    prompts = ["Hello", "x" * 40, "What is 3? " * 5]
    asked = [GenerationRequest(session_backbone.chat_ids(p), str(t), max_new_tokens=12) for p in prompts for t in tokens]
    written = engine.complete(asked)
    assert [set(one.token_ids) for one in written] == [{token} for _ in prompts for token in tokens]
    engine.close()


@pytest.mark.parametrize(
    ("asked", "answered", "text"),
    [
        ("north@1", "north@2", "N"),  # a version that was not asked for
        ("north@1", "north@1", "S"),  # another's words under the right name
        ("north@1", "north@1", "NS"),  # two adapters in one reply
        ("north", "north@1", "NNNS"),
        ("north", "north@1+north@2", "NNMM"),  # a stream that turns into the next version midway, and says so
        ("north", "north@1+north@2", "NNNN"),
        ("north", "north@9", "N"),  # which nobody published
        ("north@1", "north@1", ""),
        ("north", "south@1", "S"),
        ("base", "base", "NN"),  # an adapter's words for the backbone's
    ],
)
def test_a_wrong_answer_is_seen(world: World, asked: str, answered: str, text: str) -> None:
    tally = checked(world, asked, answered, text)
    assert len(tally.wrong) == 1 and not tally.answered


@pytest.mark.parametrize(
    ("asked", "answered", "text"),
    [("north", "north@1", "NNN"), ("north@2", "north@2", "M"), ("south", "south@1", "SS"), ("base", "base", "NSSS")],
)
def test_a_right_answer_is_counted(world: World, asked: str, answered: str, text: str) -> None:
    tally = checked(world, asked, answered, text)
    assert tally.answered.total() == 1 and not tally.wrong


def checked(world: World, asked: str, answered: str, text: str) -> Tally:
    """`text` in letters: N and M are the words of north@1 and north@2, S that of south@1."""
    words = {letter: world.says[release] for letter, release in (("N", "north@1"), ("M", "north@2"), ("S", "south@1"))}
    tally, models = Tally(), {"base": world.base}
    said = "".join(words[letter] for letter in text)
    tally.check(world, models.get(asked, asked), models.get(answered, answered), said)
    return tally


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("is at /usr/bin/env, not here", "is at env, not here"),
        ("see file:///usr/bin/env.", "see env"),
        ("/v1/models is not offered", "/v1/models is not offered"),
        ("a/b and 3/4", "a/b and 3/4"),
    ],
)
def test_where_files_lie_stays_on_the_server(text: str, shown: str) -> None:
    assert without_paths(text).rstrip(".") == shown


def test_a_full_disk_is_told_from_a_damaged_file() -> None:
    assert lacks_room(OSError(errno.ENOSPC, "No space left on device"))
    assert lacks_room(shutil.Error([("a", "b", "[Errno 27] File too large")]))
    assert not lacks_room(OSError(errno.ENOENT, "No such file"))
    assert not lacks_room(shutil.Error([("a", "b", "[Errno 2] No such file")]))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [b"Internal Server Error", b'{"error": "without a code"}', b"[]"])
def test_a_reply_that_is_no_error_in_its_shape_is_lost(world: World, body: bytes, stream: bool) -> None:
    with answering(body, 500) as url:
        traffic = Traffic(world, url)
        traffic.ask(NAMES[0], "?", stream=stream)
    assert len(traffic.tally.lost) == 1 and "out of shape" in traffic.tally.lost[0]


def test_a_request_to_nobody_is_lost(world: World) -> None:
    traffic = Traffic(world, "http://127.0.0.1:9")
    traffic.ask(NAMES[0], "?")
    assert len(traffic.tally.lost) == 1
