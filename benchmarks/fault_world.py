"""What faults are tried on: releases that say their own names, traffic that checks every answer, and the count of both."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.files import kind_of
from benchmarks.own_names import name_tokens, saying
from engine.profile import Profile
from registry.ledger import Ledger
from registry.manifest import BackboneIdentity, ProfileDescription, TrainingHashes, write_manifest
from registry.names import ReleaseName
from registry.release import publish
from registry.tracking import Tracking

NAMES = ("north", "south", "east", "west")
VERSIONS = 2
PROMPTS = ("Add 5.", "Start with 12. Add 5, then take away 3. What is the result?", "Which chapter is it in?", "?")


@dataclass(frozen=True)
class World:
    """`says` is what each NAME@VERSION writes, and nothing but that; every name's first version is champion at the start."""

    folder: Path
    backbone: str
    base: str  # the name that the backbone is served under
    tracking: Tracking
    says: Mapping[str, str]
    pause_s: float = 0.0  # of each client, before it asks again

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def ledger(self, name: str) -> Ledger:
        return Ledger(self.tracking, name)

    def promote(self, name: str, version: int) -> None:
        self.ledger(name).promote(version, None, override=True, reason="a fault is tried")

    def publish(self, name: str, adapter: Adapter, backbone: Backbone, label: str) -> ReleaseName:
        directory = self.folder / "files" / label
        write_files(directory, backbone, adapter)
        return publish(self.tracking, name, directory).full_name


def new_world(folder: Path, backbone: Backbone, base: str, pause_s: float = 0.0) -> World:
    tracking = Tracking.at(folder / "home").create()
    tokens = iter(name_tokens(backbone, len(NAMES) * VERSIONS))
    says: dict[str, str] = {}
    world = World(folder, backbone.name, base, tracking, says, pause_s)
    for name in NAMES:
        for version in range(1, VERSIONS + 1):
            token = next(tokens)
            says[str(world.publish(name, saying(backbone, token), backbone, f"{name}-{version}"))] = backbone.decode([token])
        world.promote(name, 1)
    return world


def write_files(directory: Path, backbone: Backbone, adapter: Adapter) -> None:
    """A release's directory, as a fit would leave it."""
    Profile((adapter,)).save(directory)
    write_manifest(
        directory,
        backbone=BackboneIdentity(name=backbone.name, fingerprint=backbone.fingerprint, dtype="float32"),
        profile=ProfileDescription(adapters=(kind_of(adapter),)),
        recipe={"name": "faults"},
        task={"name": "faults"},
        data_digests={},
        lock_digest="0" * 64,
        seeds={},
        training=TrainingHashes(frozenset(), frozenset()),
    )


@dataclass
class Tally:
    """What became of the requests. `wrong` and `lost` must stay empty whatever is broken."""

    answered: Counter[str] = field(default_factory=Counter)  # by NAME@VERSION
    refused: Counter[str] = field(default_factory=Counter)  # by the error's code
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # accepted, and ended neither whole nor with an error

    @property
    def asked(self) -> int:
        return self.answered.total() + self.refused.total() + len(self.wrong) + len(self.lost)

    def check(self, world: World, model: str, answered: str, text: str) -> None:
        """`model` was asked for and `answered` is who the reply says it was: NAME@VERSION, or several joined by `+`.

        A release's reply is its own word from its first character to its last. The backbone may write any word, so of its
        replies only those are seen that are all of a release's.
        """
        name, _, version = model.partition("@")
        rightful = answered == model if version or model == world.base else answered.startswith(f"{name}@")
        if answered == world.base:
            own = not any(_is_all(other, text) for other in world.says.values())
        else:
            own = answered in world.says and _is_all(world.says[answered], text)
        if rightful and own:
            self.answered[answered] += 1
        else:
            self.wrong.append(f"{model} was answered by {answered} with {text[:60]!r}")


@dataclass(frozen=True)
class Traffic:
    """Requests over real sockets to a server at `url`; safe from several threads but for the tally, which has a lock."""

    world: World
    url: str
    tally: Tally = field(default_factory=Tally)
    lock: threading.Lock = field(default_factory=threading.Lock)
    headers: Mapping[str, str] = field(default_factory=dict)

    def ask(self, model: str, prompt: str, *, stream: bool = False, max_tokens: int = 8, down: bool = False) -> None:
        """One request, counted. `down`: the server may be dead, so that a connection that breaks is its error."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
        try:
            with httpx.Client(timeout=60, headers=dict(self.headers)) as client:
                found = self._streamed(client, body) if stream else self._whole(client, body)
        except httpx.TransportError as error:
            with self.lock:
                if down:
                    self.tally.refused[type(error).__name__] += 1
                else:
                    self.tally.lost.append(f"{model}: {type(error).__name__}: {error}")
            return
        except (ValueError, LookupError, TypeError) as error:  # neither a reply nor an error in the shape of one
            with self.lock:
                self.tally.lost.append(f"{model}: out of shape, {type(error).__name__}: {error}")
            return
        with self.lock:
            if isinstance(found, str):
                self.tally.refused[found] += 1
            elif found is None:
                self.tally.lost.append(f"{model}: a stream ended without its end")
            else:
                self.tally.check(self.world, model, *found)

    def _whole(self, client: httpx.Client, body: Mapping[str, object]) -> tuple[str, str] | str:
        reply = client.post(f"{self.url}/v1/completions", json=body)
        told = reply.json()
        return (told["model"], told["choices"][0]["text"]) if reply.status_code == 200 else str(told["error"]["code"])

    def _streamed(self, client: httpx.Client, body: Mapping[str, object]) -> tuple[str, str] | str | None:
        models, text, is_done = set[str](), "", False
        with client.stream("POST", f"{self.url}/v1/completions", json=body) as reply:
            if reply.status_code != 200:
                return str(json.loads(reply.read())["error"]["code"])
            for line in reply.iter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    is_done = True
                elif line.startswith("data: "):
                    chunk = json.loads(data)
                    if "error" in chunk:
                        return str(chunk["error"]["code"])
                    models.add(chunk["model"])
                    text += "".join(choice.get("text") or "" for choice in chunk["choices"])
        if not is_done:
            return None
        return ("+".join(sorted(models)), text)

    @contextmanager
    def flowing(self, threads: int = 3, *, down: bool = False, seed: int = 0) -> Iterator[None]:
        """Inside, so many clients ask at random: names, versions, the backbone, whole and streamed."""
        is_over = threading.Event()

        def keep_asking(place: int) -> None:
            draw = random.Random(f"{seed}/{place}")
            models = [*NAMES, *self.world.says, self.world.base]
            while not is_over.is_set():
                model, prompt, stream = draw.choice(models), draw.choice(PROMPTS), draw.random() < 0.5
                self.ask(model, prompt, stream=stream, max_tokens=draw.randint(1, 16), down=down)
                time.sleep(self.world.pause_s)

        running = [threading.Thread(target=keep_asking, args=(place,), daemon=True) for place in range(threads)]
        for thread in running:
            thread.start()
        try:
            yield
        finally:
            is_over.set()
            for thread in running:
                thread.join(timeout=90)


def _is_all(word: str, text: str) -> bool:
    """Whether the text is that word, once or again and again."""
    return text != "" and text == word * (len(text) // len(word))


def metric(url: str, sample: str, headers: Mapping[str, str] | None = None) -> float:
    """Of /metrics, summed over the series that begin so."""
    text = httpx.get(f"{url}/metrics", headers=dict(headers or {}), timeout=30).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(sample))


def wait_until(holds: object, within_s: float, every_s: float = 0.1) -> bool:
    """Whether it came to hold in time. `holds` is called; an error of the connection counts as not yet."""
    assert callable(holds)
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        try:
            if holds():
                return True
        except httpx.TransportError:
            pass
        time.sleep(every_s)
    return False
