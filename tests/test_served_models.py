"""Names to releases: what a request's model means while the ledger moves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_releases import complete, random_lora, write_release

from adapters.backbone import Backbone
from engine.torch_engine import TorchEngine
from registry.errors import RegistryUnreachable, UnknownRelease
from registry.manifest import verify
from registry.names import ReleaseName
from registry.release import Release
from service.errors import ApiError
from service.lease import Lease, Served
from service.models import MAX_MODEL, ServedModels
from service.unserved import REGISTRY_AWAY, RETRY_REFUSED_S


class Shelf:
    """A catalogue over directories, whose ledger and aliases a test moves by hand."""

    def __init__(self, directory: Path, backbone: Backbone) -> None:
        self._directory, self._backbone = directory, backbone
        self.ledger: dict[str, int | None] = {}
        self.aliases: dict[str, ReleaseName] = {}
        self.is_reachable = True

    def place(self, name: str, version: int) -> Path:
        return self._directory / f"{name}-{version}"

    def put(self, name: str, version: int, fingerprint: str | None = None) -> Path:
        lora = random_lora(self._backbone, version)
        write_release(self.place(name, version), self._backbone, lora, fingerprint=fingerprint)
        return self.place(name, version)

    def champions(self) -> Mapping[str, int | None]:
        self._reach()
        return self.ledger

    def resolve(self, reference: str) -> ReleaseName:
        self._reach()
        name, _, selector = reference.partition("@")
        found = self.aliases.get(reference) or ReleaseName(name, int(selector) if selector.isdigit() else 0)
        if not self.place(found.name, found.version).is_dir():
            raise UnknownRelease(f"{reference} is not on the shelf.")
        return found

    def open(self, release: ReleaseName) -> Release:
        self._reach()
        directory = self.place(release.name, release.version)
        return Release(release.name, release.version, directory, verify(directory), None)

    def _reach(self) -> None:
        if not self.is_reachable:
            raise RegistryUnreachable("The shelf is out of reach.")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def shelf(tmp_path: Path, backbone: Backbone) -> Shelf:
    shelf = Shelf(tmp_path, backbone)
    shelf.put("law", 1)
    shelf.put("law", 2)
    shelf.ledger["law"] = 1
    return shelf


@pytest.fixture
def engine(backbone: Backbone) -> TorchEngine:
    return TorchEngine(backbone)


@pytest.fixture
def models(engine: TorchEngine, backbone: Backbone, shelf: Shelf) -> ServedModels:
    models = ServedModels(engine, backbone, shelf, max_loaded=1)
    models.refresh()
    return models


def lease(models: ServedModels, model: str) -> Lease:
    return asyncio.run(models.lease(model))


def refusal(models: ServedModels, model: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        lease(models, model)
    return caught.value


def test_a_name_means_what_the_ledger_promoted(models: ServedModels) -> None:
    assert lease(models, "law").served.id == "law@1"


def test_the_backbone_is_served_under_its_own_name_without_a_profile(models: ServedModels, backbone: Backbone) -> None:
    served = lease(models, models.backbone_id).served
    assert (served.profile, served.digest) == (None, backbone.fingerprint)


def test_a_registered_model_of_the_backbones_name_leaves_it_to_the_backbone(
    models: ServedModels, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.put(models.backbone_id, 1)
    shelf.ledger[models.backbone_id] = 1
    models.refresh()
    models.refresh()
    assert models.ids() == [models.backbone_id, "law"]
    assert lease(models, models.backbone_id).served.profile is None
    assert lease(models, f"{models.backbone_id}@1").served.profile is not None
    assert sum("which means the backbone" in record.message for record in caplog.records) == 1


def test_the_backbones_directory_stays_on_the_server(models: ServedModels) -> None:
    assert "/" not in models.backbone_id


def test_the_engines_name_of_a_release_holds_its_digest(models: ServedModels) -> None:
    served = lease(models, "law").served
    assert served.profile == f"law@v1#{served.digest[:12]}"


def test_a_promotion_is_served_while_earlier_requests_keep_their_release(
    models: ServedModels, shelf: Shelf, engine: TorchEngine
) -> None:
    running = lease(models, "law")
    shelf.ledger["law"] = 2
    models.refresh()
    assert lease(models, "law").served.id == "law@2"
    assert running.served.profile in engine.loaded


def test_a_release_leaves_the_engine_once_its_last_request_is_done(
    models: ServedModels, shelf: Shelf, engine: TorchEngine
) -> None:
    running = lease(models, "law")
    shelf.ledger["law"] = 2
    models.refresh()
    running.release()
    running.release()  # twice is once
    models.refresh()
    assert [name.partition("#")[0] for name in engine.loaded] == ["law@v2"]


def test_a_rollback_serves_the_earlier_version_again(models: ServedModels, shelf: Shelf) -> None:
    for version in (2, 1):
        shelf.ledger["law"] = version
        models.refresh()
    assert lease(models, "law").served.id == "law@1"


def test_the_ledger_decides_what_the_alias_champion_means(models: ServedModels, shelf: Shelf) -> None:
    # Someone moved the alias in the registry's web page: that version passed no gate.
    shelf.aliases["law@champion"] = ReleaseName("law", 2)
    assert lease(models, "law@champion").served.id == "law@1"


def test_a_version_is_loaded_when_it_is_asked_for(models: ServedModels) -> None:
    assert lease(models, "law@2").served.id == "law@2"
    assert lease(models, "law@v2").served.id == "law@2"


def test_an_alias_is_followed(models: ServedModels, shelf: Shelf) -> None:
    shelf.put("law", 3)
    shelf.aliases["law@candidate"] = ReleaseName("law", 2)
    assert lease(models, "law@candidate").served.id == "law@2"
    shelf.aliases["law@candidate"] = ReleaseName("law", 3)
    models.refresh()
    assert lease(models, "law@candidate").served.id == "law@3"


def test_of_too_many_versions_the_least_recently_used_leaves(engine: TorchEngine, backbone: Backbone, shelf: Shelf) -> None:
    shelf.put("law", 3)
    clock = Clock()
    models = ServedModels(engine, backbone, shelf, max_loaded=1, clock=clock)
    models.refresh()
    for version in (2, 3):
        clock.now_s += 1
        lease(models, f"law@{version}").release()
    models.refresh()
    assert sorted(name.partition("#")[0] for name in engine.loaded) == ["law@v1", "law@v3"]


def poison(directory: Path, backbone: Backbone) -> None:
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    tensors[first] = torch.full_like(tensors[first], float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})
    complete(directory, backbone)  # whole by its digests: only the values are wrong


def cut_short(directory: Path, backbone: Backbone) -> None:
    file = directory / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def claim_another_backbone(directory: Path, backbone: Backbone) -> None:
    complete(directory, backbone, fingerprint="f" * 64)


def lose_the_manifest(directory: Path, backbone: Backbone) -> None:
    (directory / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(poison, "NaN"), (cut_short, "SHA-256"), (claim_another_backbone, "ffffffffffff"), (lose_the_manifest, "manifest.json")],
)
def test_a_refused_release_is_reported_and_the_last_good_one_stays(
    models: ServedModels, shelf: Shelf, backbone: Backbone, damage: Callable[[Path, Backbone], None], reason: str
) -> None:
    damage(shelf.place("law", 2), backbone)
    shelf.ledger["law"] = 2
    models.refresh()
    assert reason in models.readiness().refused["law@2"]
    assert lease(models, "law").served.id == "law@1"
    answer = refusal(models, "law@2")
    assert (answer.status, answer.headers["x-should-retry"]) == (503, "false") and reason in answer.message


def test_a_refused_release_is_tried_again_after_a_while(engine: TorchEngine, backbone: Backbone, shelf: Shelf) -> None:
    clock = Clock()
    models = ServedModels(engine, backbone, shelf, clock=clock)
    good = (shelf.place("law", 1) / "manifest.json").read_bytes()
    lose_the_manifest(shelf.place("law", 1), backbone)
    models.refresh()
    (shelf.place("law", 1) / "manifest.json").write_bytes(good)
    models.refresh()
    assert refusal(models, "law").code == "model_refused"
    clock.now_s += RETRY_REFUSED_S
    models.refresh()
    assert lease(models, "law").served.id == "law@1"
    assert models.readiness().refused == {}


def test_without_the_registry_what_is_loaded_stays_served(models: ServedModels, shelf: Shelf) -> None:
    shelf.is_reachable = False
    models.refresh()
    assert lease(models, "law").served.id == "law@1"
    assert models.readiness().registry == REGISTRY_AWAY
    answer = refusal(models, "law@2")
    assert answer.code == "registry_unreachable"
    assert "shelf" not in answer.message  # where the registry stands is in the log, and in no reply
    shelf.is_reachable = True
    models.refresh()
    assert models.readiness().registry is None


def test_an_older_look_has_not_the_last_word(models: ServedModels, shelf: Shelf) -> None:
    read, moved = threading.Event(), threading.Event()
    champions, ledger = shelf.champions, dict(shelf.ledger)

    def slow() -> Mapping[str, int | None]:
        shelf.champions = champions  # type: ignore[method-assign]
        read.set()
        moved.wait(2)  # while another look may begin, and end
        return ledger

    shelf.champions = slow  # type: ignore[method-assign]
    older = threading.Thread(target=models.refresh)
    older.start()
    read.wait(5)
    shelf.ledger["law"] = 2
    newer = threading.Thread(target=lambda: (models.refresh(), moved.set()))
    newer.start()
    newer.join(10)
    older.join(10)
    newer.join(10)
    assert lease(models, "law").served.id == "law@2"


def test_where_one_version_may_be_kept_two_that_are_asked_for_at_once_are_both_answered(
    engine: TorchEngine, backbone: Backbone, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put("law", 3)
    models = ServedModels(engine, backbone, shelf, max_loaded=1)
    models.refresh()
    loaded = threading.Barrier(2)
    drop_idle = models._drop_idle

    def when_both_are_loaded() -> None:
        loaded.wait(20)
        drop_idle()
        loaded.wait(20)

    async def both() -> list[str]:
        leases = await asyncio.gather(models.lease("law@2"), models.lease("law@3"))
        return [lease.served.id for lease in leases]

    monkeypatch.setattr(models, "_drop_idle", when_both_are_loaded)
    assert asyncio.run(both()) == ["law@2", "law@3"]
    assert not models._wants


@pytest.mark.parametrize("model", ["law@" + "1" * 5000, "x" * 100_000, "/a" * 5000], ids=["version", "name", "path"])
def test_a_name_longer_than_any_is_unknown_in_a_short_sentence(models: ServedModels, model: str) -> None:
    assert len(model) > MAX_MODEL
    answer = refusal(models, model)
    assert answer.status == 404 and len(answer.body()["error"]["message"] or "") < 1000


def test_what_was_loaded_by_name_counts_as_answering(models: ServedModels) -> None:
    models.install("mine", lambda: Served("mine", None, "digest"))
    assert "mine" in [one.id for one in models.answering()]
    models.remove("mine")
    assert "mine" not in [one.id for one in models.answering()]


def test_an_unknown_model_is_told_the_names_that_exist(models: ServedModels) -> None:
    answer = refusal(models, "medicine")
    assert (answer.status, answer.code, answer.param) == (404, "model_not_found", "model")
    assert models.backbone_id in answer.message and "law" in answer.message


@pytest.mark.parametrize("model", ["law@9", "law@nightly", "LAW", "law@", "../law", ""])
def test_what_does_not_exist_is_never_answered_by_something_else(models: ServedModels, model: str) -> None:
    assert refusal(models, model).status == 404


def test_a_name_without_a_champion_says_how_to_get_one(models: ServedModels, shelf: Shelf) -> None:
    shelf.ledger["tax"] = None
    models.refresh()
    answer = refusal(models, "tax")
    assert answer.status == 404 and "graftline promote" in answer.message
    assert models.ids() == [models.backbone_id, "law"]
