"""The faults: each breaks one thing while clients ask, puts it right again, and says whether what must hold held."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from adapters.backbone import Backbone
from benchmarks.fault_world import NAMES, PROMPTS, Tally, Traffic, World, metric, wait_until
from benchmarks.own_names import name_tokens, saying
from engine.engine import MAX_TOP_LOGPROBS
from registry.tracking import Tracking

HUGE = 12 * 1024 * 1024  # bytes of a body that is over every limit
WHOLE, CUT_SHORT = "whole", "cut short without an error"  # how a stream may end that nobody was told to give up


@dataclass(frozen=True)
class Size:
    """How much of each fault is tried."""

    promotions: int = 40
    hang_ups: int = 60
    away_s: float = 3.0
    readers: int = 3
    settle_s: float = 30.0


FULL = Size(promotions=1000, hang_ups=500, away_s=600.0, readers=4, settle_s=120.0)


@dataclass(frozen=True)
class Outcome:
    """`held` is whether what must hold did; `told` says what was seen."""

    fault: str
    held: bool
    told: str
    tally: Tally

    @classmethod
    def of(cls, fault: str, traffic: Traffic, *, held: bool, told: str) -> Outcome:
        """No answer was wrong, none was lost, and the fault's own condition holds."""
        clean = not traffic.tally.wrong and not traffic.tally.lost
        return cls(fault, held and clean, told, traffic.tally)


@dataclass(frozen=True)
class Target:
    """A server that is up. `worker` is the process that holds the engine, where it may be killed or limited."""

    url: str
    worker: Callable[[], int]
    backbone: Backbone


Fault = Callable[[World, Target, Size], Outcome]


def damaged_adapter(world: World, target: Target, size: Size) -> Outcome:
    """A release whose stored weights are cut short is promoted: the one before it stays served, the reason is told."""
    traffic, name = Traffic(world, target.url), NAMES[0]
    release = _publish(world, target.backbone, name)
    broken = _damage(world.tracking, release)
    with traffic.flowing():
        world.promote(name, int(str(release).partition("@")[2]))
        refused = wait_until(lambda: str(release) in _models(target.url)["graftline"]["refused"], size.settle_s)
        time.sleep(0.5)
    world.ledger(name).rollback("the fault is over")
    told = f"{release} was refused by name: {refused}; {broken}"
    return Outcome.of("a damaged adapter is promoted", traffic, held=refused, told=told)


def promotions(world: World, target: Target, size: Size) -> Outcome:
    """Promotions and rollbacks in turn, while clients ask: no reply mixes two versions; every tenth pair is waited for."""
    traffic, name, late = Traffic(world, target.url), NAMES[1], list[str]()

    def awaited(version: int) -> None:
        if not wait_until(lambda: _served_as(target.url, name) == f"{name}@{version}", size.settle_s):
            late.append(f"{name}@{version}")

    with traffic.flowing():
        for turn in range(size.promotions // 2):
            world.promote(name, 2)
            if turn % 10 == 0:
                awaited(2)
            world.ledger(name).rollback(f"turn {turn}", 1)
            if turn % 10 == 0:
                awaited(1)
        world.promote(name, 2)
        awaited(2)
    world.ledger(name).rollback("the fault is over", 1)
    awaited(1)
    answered = {version: traffic.tally.answered[f"{name}@{version}"] for version in (1, 2)}
    told = f"{size.promotions} entries; {len(late)} of {2 + 2 * -(-size.promotions // 20)} that were waited for came late; " + (
        " and ".join(f"{count} replies by {name}@{version}" for version, count in answered.items())
    )
    return Outcome.of("promotions and rollbacks in turn", traffic, held=not late and min(answered.values()) > 0, told=told)


def hang_ups(world: World, target: Target, size: Size) -> Outcome:
    """Connections that hang up at random, in the request, before the first byte, or in the stream: their rows are freed."""
    traffic = Traffic(world, target.url)
    draws = [random.Random(f"hang up {place}") for place in range(size.hang_ups)]
    before = _cancelled(world, target.url)
    with traffic.flowing(threads=2), ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda draw: _hang_up(target.url, draw), draws))
    freed = wait_until(lambda: metric(target.url, "graftline_running_rows") == 0, size.settle_s)
    cancelled = _cancelled(world, target.url) - before
    told = f"{size.hang_ups} connections; {cancelled:g} requests were taken off in the middle, no row of theirs is left: {freed}"
    return Outcome.of("connections hang up at random", traffic, held=freed and cancelled > 0, told=told)


def never_reads(world: World, target: Target, size: Size) -> Outcome:
    """Clients that ask for long streams and never read: others are answered, and their rows end while they stay connected."""
    traffic, before = Traffic(world, target.url), _cancelled(world, target.url)
    open_ones = [_ask_and_never_read(target, NAMES[0]) for _ in range(size.readers)]
    try:
        with traffic.flowing():
            ended = wait_until(lambda: _cancelled(world, target.url) - before >= size.readers, size.settle_s)
        freed = wait_until(lambda: metric(target.url, "graftline_running_rows") == 0, size.settle_s)
        begun = [one.recv(12) for one in open_ones].count(b"HTTP/1.1 200")
    finally:
        for one in open_ones:
            one.close()
    told = (
        f"{size.readers} such clients, of which {begun} were sent a stream; while they stayed connected, "
        f"all were ended: {ended}, and no row of theirs was left: {freed}"
    )
    held = ended and freed and begun == size.readers and traffic.tally.answered.total() > 0
    return Outcome.of("a client that never reads", traffic, held=held, told=told)


def limits(world: World, target: Target, size: Size) -> Outcome:
    """Prompts at the context's limit are answered, one token more is refused by its code."""
    traffic, context = Traffic(world, target.url), target.backbone.context_length
    (token,) = name_tokens(target.backbone, 1)
    codes = {}
    for length in (context - 1, context, context + 1):
        reply = httpx.post(
            f"{target.url}/v1/completions", json={"model": NAMES[0], "prompt": [token] * length, "max_tokens": 4}, timeout=600
        )
        codes[length - context] = reply.json().get("error", {}).get("code", reply.status_code)
    with traffic.flowing():
        time.sleep(0.5)
    held = codes == {-1: 200, 0: "context_length_exceeded", 1: "context_length_exceeded"}
    return Outcome.of("prompts at the limit", traffic, held=held, told=f"by distance from the context: {codes}")


def bodies(world: World, target: Target, size: Size) -> Outcome:
    """Bodies of 12 MB, nested without end, of no JSON and of no UTF-8 are refused with a 4xx in the OpenAI shape."""
    traffic = Traffic(world, target.url)
    sent: dict[str, bytes] = {
        "12 MB": b'{"model": "north", "prompt": "' + b"a" * HUGE + b'"}',
        "no JSON": b'{"model": "north", ',
        "no UTF-8": b'{"model": "north", "prompt": "\xff\xfe"}',
        "nested": b'{"model": "north", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a number for an object": b"7",
        "not finite": b'{"model": "north", "prompt": "a", "temperature": NaN}',
        "empty": b"",
    }
    found = {}
    with traffic.flowing():
        for name, body in sent.items():
            found[name] = _refusal(target.url, body)
    held = all(400 <= status < 500 and coded for status, coded in found.values())
    return Outcome.of("bodies that are no request", traffic, held=held, told=", ".join(f"{k} {v[0]}" for k, v in found.items()))


def registry_away(world: World, target: Target, size: Size) -> Outcome:
    """The registry's store goes away: what is loaded stays served; when it is back, a promotion is served."""
    traffic, name = Traffic(world, target.url), NAMES[2]
    store = world.home / "mlflow.db"
    aside = store.with_suffix(".aside")
    with traffic.flowing():
        store.rename(aside)
        store.mkdir()  # so that nobody makes an empty store in its place
        try:
            noticed = wait_until(lambda: _models(target.url)["graftline"]["registry"] != "ok", max(size.away_s, size.settle_s))
            time.sleep(size.away_s)
            before = traffic.tally.answered.total()  # still away, and for so long
            went_on = wait_until(lambda: traffic.tally.answered.total() > before, size.settle_s)
        finally:
            store.rmdir()
            aside.rename(store)
        world.promote(name, 2)
        served = wait_until(lambda: _served_as(target.url, name) == f"{name}@2", size.settle_s)
    world.ledger(name).rollback("the fault is over")
    told = f"away for {size.away_s:g} s: noticed {noticed}, answers went on {went_on}, a promotion after it was served {served}"
    return Outcome.of("the registry is away", traffic, held=noticed and went_on and served, told=told)


def disk_full(world: World, target: Target, size: Size) -> Outcome:
    """No byte can be written while a release is fetched: it is refused, what is loaded stays, and with room it is served."""
    traffic, name = Traffic(world, target.url), NAMES[3]
    release = _publish(world, target.backbone, name)
    _forget_copies(world)
    number = int(str(release).partition("@")[2])
    with traffic.flowing():
        with _no_room(target.worker()):
            body = {"model": str(release), "prompt": "?", "max_tokens": 2}
            reply = httpx.post(f"{target.url}/v1/completions", json=body, timeout=60)
            code = reply.json().get("error", {}).get("code", reply.status_code)
        left = [file.name for file in world.tracking.cache.rglob("*.part*")] if world.tracking.cache.exists() else []
    world.promote(name, number)
    served = wait_until(lambda: _served_as(target.url, name) == str(release), 90 + size.settle_s)  # a refusal is kept a minute
    world.ledger(name).rollback("the fault is over")
    told = f"asked for without room: {code}; half-written files {len(left)}; served once there is room: {served}"
    return Outcome.of("the disk is full", traffic, held=code != 200 and not left and served, told=told)


def killed_worker(world: World, target: Target, size: Size) -> Outcome:
    """The process that holds the engine is killed in mid-stream: open requests break off, and a new one answers."""
    traffic = Traffic(world, target.url)
    with traffic.flowing(down=True):
        time.sleep(1.0)
        old = target.worker()
        ended = _killed_in_mid_stream(target.url, old)
        back = wait_until(lambda: target.worker() != old and httpx.get(f"{target.url}/readyz").status_code == 200, 180.0)
        before = traffic.tally.answered.total()
        answers = wait_until(lambda: traffic.tally.answered.total() > before + 3, size.settle_s)
    broken = traffic.tally.refused.total()
    told = (
        f"the stream that was open ended as {ended}; another worker was ready: {back}, and answered: {answers}; {broken} other "
        "requests broke off meanwhile"
    )
    held = ended not in (WHOLE, CUT_SHORT) and back and answers
    return Outcome.of("the worker is killed", traffic, held=held, told=told)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (damaged_adapter, promotions, hang_ups, never_reads, limits, bodies, registry_away, disk_full, killed_worker)
}


def _publish(world: World, backbone: Backbone, name: str) -> object:
    """One more version that says its own name; which word it is matters to nobody, as long as it is its own."""
    token = name_tokens(backbone, len(world.says) + 1)[-1]
    label = f"{name}-{len(world.says)}-{time.time_ns()}"
    release = world.publish(name, saying(backbone, token), backbone, label)
    assert isinstance(world.says, dict)
    world.says[str(release)] = backbone.decode([token])
    return release


def _damage(tracking: Tracking, release: object) -> str:
    """Cuts every stored copy of its weights in half."""
    name, _, version = str(release).partition("@")
    with tracking.client() as client:
        stored = client.get_model_version(name, version)
        logged = client.get_logged_model(str(stored.source).removeprefix("models:/"))
    location = Path(str(logged.artifact_location).removeprefix("file://"))
    files = list(location.rglob("*.safetensors"))
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    digest = stored.tags["graftline.manifest_sha256"]
    _remove(tracking.cache / digest)
    return f"{len(files)} files cut in half"


def _forget_copies(world: World) -> None:
    for folder in world.tracking.cache.iterdir():
        _remove(folder)


def _remove(folder: Path) -> None:
    if folder.is_dir():
        for file in (folder, *folder.rglob("*")):
            file.chmod(0o755)
        shutil.rmtree(folder)


@contextmanager
def _no_room(process: int) -> Iterator[None]:
    """No file of the process may grow: every write to a regular file fails, as on a full disk."""
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)


def _hang_up(url: str, draw: random.Random) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    # Long, so that it is still written when the client hangs up.
    asked = {"model": draw.choice(NAMES), "prompt": draw.choice(PROMPTS), "max_tokens": 400, "ignore_eos": True}
    whole = _request(host, json.dumps({**asked, "stream": draw.random() < 0.5}))
    with socket.create_connection((host, int(port)), timeout=30) as one:
        cut = draw.random() < 0.3
        one.sendall(whole[: draw.randint(1, len(whole) - 1)] if cut else whole)
        if not cut and draw.random() < 0.5:
            one.settimeout(5)
            try:
                one.recv(draw.randint(1, 400))
            except TimeoutError:
                return
        time.sleep(0.1 * draw.random())


def _cancelled(world: World, url: str) -> float:
    """Requests so far whose clients left before the end."""
    return sum(metric(url, f'graftline_requests_total{{model="{release}",outcome="cancelled"}}') for release in world.says)


def _ask_and_never_read(target: Target, model: str) -> socket.socket:
    """Megabytes, by the likeliest tokens beside each: what the sockets in between take is no back-pressure."""
    host, _, port = target.url.removeprefix("http://").partition(":")
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)  # before it is connected, or it is no bound of the window
    one.settimeout(30)
    one.connect((host, int(port)))
    long = {"max_tokens": target.backbone.context_length - 64, "ignore_eos": True, "logprobs": MAX_TOP_LOGPROBS, "n": 6}
    one.sendall(_request(host, json.dumps({"model": model, "prompt": "?", "stream": True, **long})))
    return one


def _request(host: str, body: str) -> bytes:
    """A service without keys answers no other host than its own."""
    head = ("POST /v1/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join((*head, "", body)).encode()


def _killed_in_mid_stream(url: str, worker: int) -> str:
    """How a stream ended whose server was killed after its first chunk."""
    body = {"model": NAMES[0], "prompt": "?", "stream": True, "max_tokens": 400}
    lines = list[str]()
    try:
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply:
            for line in reply.iter_lines():
                if not lines:
                    os.kill(worker, signal.SIGKILL)
                lines.append(line)
    except httpx.TransportError as error:
        return type(error).__name__
    return WHOLE if "data: [DONE]" in lines else CUT_SHORT


def _refusal(url: str, body: bytes) -> tuple[int, bool]:
    """The status, and whether the error has a code. A server that closes while it is sent to has refused too."""
    try:
        reply = httpx.post(f"{url}/v1/completions", content=body, headers={"content-type": "application/json"}, timeout=60)
    except httpx.WriteError:
        return 413, True
    try:
        return reply.status_code, bool(reply.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return reply.status_code, False


def _models(url: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = httpx.get(f"{url}/v1/models", timeout=30).json()
    return found


def _served_as(url: str, name: str) -> str | None:
    reply = httpx.get(f"{url}/v1/models/{name}", timeout=30)
    return str(reply.json()["root"]) if reply.status_code == 200 else None
