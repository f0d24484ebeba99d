"""What a process makes of a canary without any socket: who is drawn, what is compared, and what happens as things go wrong."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from gated_names import NAME, report
from idle_engine import IdleEngine
from test_served_models import Clock, Shelf

from adapters.backbone import Backbone
from engine.engine import Delta, EngineStats, GenerationRequest
from engine.torch_engine import TorchEngine
from registry.canary import CanaryLedger
from registry.canary_chain import Bounds, Canary, CanaryEntry, CanaryHead, Trail
from registry.errors import RegistryUnreachable
from registry.ledger import Ledger
from registry.ledger_chain import Head
from registry.names import ReleaseName
from registry.tracking import Tracking
from service.canary import REWRITE_S, Canaries, position, position_digest, sticky_key
from service.canary_counts import PERIOD_REQUESTS, Ending, Monitor
from service.canary_shadow import MAX_WAITING, Heard, Mirrored, Shadows
from service.deadline import Allowed
from service.errors import ApiError
from service.models import ServedModels
from service.writing import Writing

FINE, FAILED = Ending(False, False, 4, 0.01, 0.01), Ending(True, False, 0, None, None)


def trail(
    version: int,
    share: float = 0.5,
    *,
    shadow: bool = False,
    champion: int = 1,
    bounds: Bounds | None = None,
    manifest: str | None = None,
) -> Trail:
    entry = CanaryEntry(
        parent=0,
        champion_entry=1,
        adapter_version=version,
        kind="start",
        share=share,
        shadow=shadow,
        bounds=bounds or Bounds(min_requests=8),
        actor="ada",
        reason="",
        gate_verdict="pass",
        gate_digest=None,
        overridden=False,
        created="2026-01-01T00:00:00+00:00",
        manifest=manifest,
    )
    return Trail(Head(1, champion), CanaryHead(2, "", 2, entry))


class Process:
    """One serving process over a shelf: law@1 is champion."""

    def __init__(self, shelf: Shelf, backbone: Backbone, trails: Callable[[], Mapping[str, Trail]]) -> None:
        self.engine, self.clock, self.written = TorchEngine(backbone), Clock(), list[str]()
        self.is_writable = True
        self.models = ServedModels(self.engine, backbone, shelf, clock=self.clock, trails=trails)
        self.models.refresh()
        self.canaries = Canaries(self.models, Shadows(self.models, self.engine, 16), self.roll_back, self.clock)

    def roll_back(self, canary: Canary, reason: str) -> None:
        if not self.is_writable:
            raise RegistryUnreachable("The shelf is out of reach.")
        self.written.append(reason)

    def ask(self, count: int, ending: Callable[[bool], Ending]) -> list[bool]:
        """Which of so many requests were the canary's."""
        sides = []
        for number in range(count):
            draw = self.canaries.draw("law", f"request {number}")
            sides.append(draw is not None and draw.on_canary)
            if draw is not None:
                monitor = self.canaries._monitor(draw.canary)
                assert monitor is not None
                monitor.note(draw.key, draw.on_canary, ending(draw.on_canary))
        return sides


@pytest.fixture
def shelf(tmp_path: Path, backbone: Backbone) -> Shelf:
    shelf = Shelf(tmp_path, backbone)
    for version in (1, 2):
        shelf.put("law", version)
    shelf.ledger["law"] = 1
    return shelf


@pytest.fixture
def process(shelf: Shelf, backbone: Backbone) -> Process:
    return Process(shelf, backbone, lambda: {"law": trail(2)})


def test_the_share_is_kept_and_every_release_draws_users_of_its_own() -> None:
    keys = [sticky_key("k1", f"user {number}", "") for number in range(4000)]
    first, other = (
        {key for key in keys if position(position_digest(ReleaseName("law", version), key)) < 0.1} for version in (1, 2)
    )
    assert all(abs(len(drawn) - 400) < 4 * math.sqrt(4000 * 0.09) for drawn in (first, other))
    assert len(first & other) < 80


def test_other_files_than_the_canary_was_started_with_get_no_traffic(process: Process, shelf: Shelf, backbone: Backbone) -> None:
    digest = process.models.digest_of(ReleaseName("law", 2))
    for manifest, drawn in ((digest, True), ("0" * 64, False)):
        of = Process(shelf, backbone, lambda manifest=manifest: {"law": trail(2, manifest=manifest)})
        assert any(of.ask(40, lambda _: FINE)) == drawn
        told = of.canaries.described("law")
        assert told is not None and (told["state"] == "serving") == drawn and drawn != ("Other files" in str(told["reason"]))


def test_a_user_is_the_keys_and_no_user_is_the_request() -> None:
    assert sticky_key("k1", "ada", "r1") == sticky_key("k1", "ada", "r2") != sticky_key("k2", "ada", "r1")
    assert sticky_key("k1", None, "r1") != sticky_key("k1", None, "r2")
    assert sticky_key(None, "ada", "r") != sticky_key(None, None, "ada")


def test_a_canary_that_cannot_be_loaded_gets_no_request_and_says_why(shelf: Shelf, backbone: Backbone) -> None:
    (shelf.put("law", 3) / "adapter_model.safetensors").unlink(missing_ok=True)
    for file in shelf.place("law", 3).rglob("*.safetensors"):
        file.unlink()
    process = Process(shelf, backbone, lambda: {"law": trail(3)})
    assert process.canaries.draw("law", "anyone") is None
    shown = process.canaries.described("law")
    assert shown is not None and shown["state"] == "not_loaded" and "missing" in str(shown["reason"])
    lease = asyncio.run(process.canaries.lease("law", "anyone"))
    assert lease.served.id == "law@1"


def test_an_idle_canary_stays_loaded_and_leaves_with_its_end(shelf: Shelf, backbone: Backbone) -> None:
    now = {"law": trail(2)}
    process = Process(shelf, backbone, lambda: now)
    process.models._max_loaded = 0
    process.models.refresh()
    assert process.models.holds(ReleaseName("law", 2))
    now.clear()
    process.models.refresh()
    assert not process.models.holds(ReleaseName("law", 2)) and process.canaries.draw("law", "anyone") is None


def test_with_the_registry_away_the_canary_is_frozen_and_what_is_loaded_stays_served(shelf: Shelf, process: Process) -> None:
    before = process.ask(40, lambda _: FINE)
    shelf.is_reachable = False
    for _ in range(60):
        process.clock.now_s += 10
        process.models.refresh()
        assert process.models.readiness().registry is not None
    assert process.ask(40, lambda _: FINE) == before and any(before)
    for model, answers in (("law", "law@1"), ("law@2", "law@2")):
        lease = asyncio.run(process.models.lease(model))
        assert lease.served.id == answers
        lease.release()
    with pytest.raises(ApiError) as refused:
        asyncio.run(process.models.lease("law@3"))
    assert (refused.value.status, refused.value.code) == (503, "registry_unreachable")


def test_a_canary_found_out_while_the_registry_is_away_gets_nothing_and_is_written_once_it_is_back(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    process.is_writable = False
    process.ask(60, lambda on_canary: FAILED if on_canary else FINE)
    with caplog.at_level(logging.WARNING, "graftline.canary"):
        logging.getLogger("graftline").propagate = True
        asyncio.run(process.canaries.look())
    assert not any(process.ask(60, lambda _: FINE)) and not process.written
    assert any("ALERT" in record.message and "law@2" in record.message for record in caplog.records)
    shown = process.canaries.described("law")
    assert shown is not None and shown["state"] == "withdrawn" and "error rate 100.0% against 0.0%" in str(shown["reason"])
    process.is_writable = True
    asyncio.run(process.canaries.look())
    assert not process.written  # not before its time
    process.clock.now_s += REWRITE_S
    asyncio.run(process.canaries.look())
    assert len(process.written) == 1


def test_a_rollback_that_the_ledger_does_not_take_holds_up_no_other_models(shelf: Shelf, backbone: Backbone) -> None:
    for version in (1, 2):
        shelf.put("tax", version)
    shelf.ledger["tax"] = 1
    trails = {"law": trail(2), "tax": trail(2)}
    process = Process(shelf, backbone, lambda: trails)
    written: list[str] = []

    def roll_back(canary: Canary, reason: str) -> None:
        if canary.release.name == "law":
            raise RegistryUnreachable("The shelf is out of reach.")
        written.append(str(canary.release))

    process.canaries._roll_back = roll_back
    for name in ("law", "tax"):
        canary = process.models.canary(name)
        assert canary is not None
        process.canaries._monitors[name] = Monitor(canary)
        process.canaries._withdraw(canary, "It was found out.")
    asyncio.run(process.canaries.look())
    assert written == ["tax@2"] and list(process.canaries._write_again_at) == ["law"]
    trails.clear()  # somebody else ended it: the next canary of the name waits for nothing
    process.models.refresh()
    asyncio.run(process.canaries.look())
    assert not process.canaries._write_again_at


def test_of_two_processes_that_find_the_same_one_rollback_is_written(
    tracking: Tracking, shelf: Shelf, backbone: Backbone
) -> None:
    """Both by the same ledger; each has seen requests of its own."""
    Ledger(tracking, NAME).promote(1, report(1))
    ledger = CanaryLedger(tracking, NAME)
    ledger.start(2, 0.5, report(2), bounds=Bounds(min_requests=8))
    for version in (1, 2):
        shelf.put(NAME, version)
    shelf.ledger = {NAME: 1}

    def roll_back(canary: Canary, reason: str) -> None:
        ledger.end("rollback", reason, expected=canary)

    processes = [Process(shelf, backbone, lambda: {NAME: ledger.history().trail}) for _ in range(2)]
    for number, process in enumerate(processes):
        process.canaries._roll_back = roll_back
        for request in range(80):
            draw = process.canaries.draw(NAME, f"{number}/{request}")
            assert draw is not None
            monitor = process.canaries._monitor(draw.canary)
            assert monitor is not None
            monitor.note(draw.key, draw.on_canary, FAILED if draw.on_canary else FINE)

    async def both() -> None:
        await asyncio.gather(*(process.canaries.look() for process in processes))

    asyncio.run(both())
    assert [entry.kind for _, entry in ledger.history().valid] == ["start", "rollback"]
    assert ledger.champions.champion_version() == 1
    assert [process.canaries.draw(NAME, "anyone") for process in processes] == [None, None]


def monitor_of(share: float = 0.5, **given: object) -> Monitor:
    canary = trail(2, share, bounds=Bounds.model_validate({"min_requests": 8, **given})).under_way("law")
    assert canary is not None
    return Monitor(canary)


def fed(monitor: Monitor, count: int, ending: Callable[[bool, int], Ending], first: int = 0) -> str | None:
    """The reason of the first look that finds something, while so many requests of as many keys end."""
    for number in range(first, first + count):
        digest = position_digest(ReleaseName("law", 2), str(number))
        on_canary = position(digest) < monitor.canary.share
        monitor.note(digest, on_canary, ending(on_canary, number))
        if monitor.is_due and (finding := monitor.look()) is not None:
            return monitor.reason(finding)
    return None


def test_a_release_of_twice_the_time_a_token_is_found_with_its_numbers() -> None:
    def ending(on_canary: bool, number: int) -> Ending:
        pace = 0.01 * (1 + number % 7 / 7) * (2 if on_canary else 1)
        return Ending(False, False, 20, 0.05 + 0.01 * (number % 5), pace)

    reason = fed(monitor_of(), 400, ending)
    assert reason is not None and "time per token" in reason and "more than 1.25 times" in reason and "alpha 0.01" in reason


def test_a_release_like_its_champion_is_not_found_over_several_periods() -> None:
    assert fed(monitor_of(), 3 * PERIOD_REQUESTS, lambda _, number: FAILED if number % 10 == 0 else FINE) is None


def test_a_release_that_goes_bad_late_is_found_in_the_next_period() -> None:
    monitor = monitor_of()
    assert fed(monitor, 2 * PERIOD_REQUESTS, lambda *_: FINE) is None
    assert fed(monitor, PERIOD_REQUESTS, lambda on_canary, _: FAILED if on_canary else FINE, first=2 * PERIOD_REQUESTS)


@pytest.mark.parametrize(
    ("outcome", "is_clients", "failed"),
    [
        ("completed", False, False),
        ("failed", False, True),
        ("timeout", False, True),
        ("timeout", True, False),  # less time than the server allows
        ("cancelled", False, False),
        ("refused", False, False),
    ],
)
def test_what_counts_against_a_release(process: Process, outcome: str, is_clients: bool, failed: bool) -> None:
    lease = asyncio.run(process.models.lease("law"))
    writing = Writing(process.engine.generate, lease, (), Allowed(1.0, is_clients=is_clients), outcome=outcome)
    ending = Ending.of(writing)
    assert (ending.failed, ending.is_clients) == (failed, outcome != "completed" and not failed)


def test_a_client_that_leaves_is_never_a_failure() -> None:
    monitor = monitor_of()
    assert fed(monitor, 600, lambda on_canary, _: Ending(False, True, 0, None, None) if on_canary else FINE) is None
    assert monitor.canary_counts.failed == 0 and monitor.canary_counts.of_clients > 200


def test_a_share_that_changes_begins_what_is_compared_anew_and_goes_on_with_the_looks() -> None:
    monitor = monitor_of(0.25)
    fed(monitor, 50, lambda *_: FINE)
    grown = trail(2, 0.5).under_way("law")
    assert grown is not None
    after = monitor.with_share_of(grown)
    assert after.period.requests == 0 and after.looks == monitor.looks > 0 and after.canary_counts.requests > 0


class Crowded(IdleEngine):
    """An engine whose rows a test takes by hand; what it writes never ends."""

    def __init__(self) -> None:
        self.running, self.waiting, self.begun, self.freed = 0, 0, 0, 0

    def stats(self) -> EngineStats:
        return EngineStats(running=self.running, waiting=self.waiting)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:  # type: ignore[override]
        self.begun += 1
        try:
            while True:
                await asyncio.sleep(0.005)
                yield Delta("a", 1, 0.0)
        finally:
            self.freed += 1


def test_mirrored_requests_are_bounded_and_make_way(process: Process) -> None:
    engine, notes = Crowded(), list[Ending]()
    shadows = Shadows(process.models, engine, 8)
    canary = trail(2, 1.0, shadow=True).under_way("law")
    assert canary is not None
    process.models._trails = {"law": trail(2, 1.0, shadow=True)}
    request = GenerationRequest((1,))

    def offer() -> None:
        heard = Heard((request,), [""])
        in_time = Allowed(60.0)
        shadows.offer(Mirrored(canary, heard, lambda lease: Writing(engine.generate, lease, (request,), in_time), notes.append))

    async def scene() -> None:
        engine.running = 5  # more than half of the rows: no room
        for _ in range(MAX_WAITING + 3):
            offer()
        assert shadows.wire(canary)["outcomes"] == {"dropped": 3}
        running = asyncio.create_task(shadows.run())
        await asyncio.sleep(0.1)
        assert engine.begun == 0
        engine.running = 0
        await asyncio.sleep(0.1)
        assert (engine.begun, engine.freed) == (1, 0)  # one at a time
        engine.waiting = 1  # a client waits for a row
        await asyncio.sleep(0.1)
        assert (engine.begun, engine.freed) == (1, 1)
        assert shadows.wire(canary)["outcomes"] == {"dropped": 3, "displaced": 1}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scene())
    assert not notes
