"""Catalogues: the registry's word on what is served, and a bundle's."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from small_releases import promote, random_lora, write_release
from stores import store_at

from adapters.backbone import Backbone
from registry.errors import DamagedRelease, RegistryUnreachable, UnknownRelease
from registry.ledger import Ledger
from registry.names import ReleaseName
from registry.release import publish
from registry.tracking import Tracking
from service.bento import write_stage
from service.catalogue import FrozenCatalogue, RegistryCatalogue


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, session_backbone: Backbone) -> Tracking:
    """law 1 and 2, of which 1 is champion before and after every test, and tax 1, which nobody promoted."""
    folder = tmp_path_factory.mktemp("catalogue")
    tracking = store_at(folder / "home")
    for name, seed in (("law", 1), ("law", 2), ("tax", 3)):
        directory = folder / f"{name}-{seed}"
        write_release(directory, session_backbone, random_lora(session_backbone, seed))
        publish(tracking, name, directory)
    promote(tracking, "law", 1)
    return tracking


@pytest.fixture
def bundle(tmp_path: Path, tracking: Tracking, backbone: Backbone) -> Path:
    write_stage(tmp_path / "stage", backbone, RegistryCatalogue(tracking))
    return tmp_path / "stage" / "frozen"


def test_every_registered_model_is_known_and_ledgers_are_not_models(tracking: Tracking) -> None:
    assert RegistryCatalogue(tracking).champions() == {"law": 1, "tax": None}


def test_an_alias_moved_by_hand_is_not_served(tracking: Tracking) -> None:
    with tracking.client() as client:
        client.set_registered_model_alias("law", "champion", "2")
    catalogue = RegistryCatalogue(tracking, ("law",))
    assert catalogue.champions() == {"law": 1}
    assert catalogue.resolve("law@champion") == ReleaseName("law", 1)


def test_a_promotion_and_a_rollback_are_seen_by_the_next_look(tracking: Tracking) -> None:
    catalogue = RegistryCatalogue(tracking, ("law",))
    seen = [catalogue.champions()["law"]]
    promote(tracking, "law", 2)
    seen.append(catalogue.champions()["law"])
    Ledger(tracking, "law").rollback("it was slower")
    seen.append(catalogue.champions()["law"])
    assert seen == [1, 2, 1]


def test_a_registry_that_does_not_answer_is_one_error(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(RegistryUnreachable):
            RegistryCatalogue(Tracking.at(tmp_path, uri)).champions()


def test_a_bundle_holds_the_champions_and_nothing_else(bundle: Path) -> None:
    catalogue = FrozenCatalogue(bundle)
    assert catalogue.champions() == {"law": 1}
    assert catalogue.open(catalogue.resolve("law@champion")).version == 1
    with pytest.raises(UnknownRelease, match="law@1"):
        catalogue.resolve("law@2")


def test_a_bundled_backbone_is_the_one_that_the_releases_were_fitted_on(bundle: Path, backbone: Backbone) -> None:
    bundled = FrozenCatalogue(bundle).load_backbone("cpu")
    assert bundled.fingerprint == backbone.fingerprint
    assert bundled.weights_digest() == backbone.weights_digest()


def test_a_bundled_backbone_that_was_changed_is_refused(bundle: Path) -> None:
    weights = bundle / "backbone" / "config.json"
    weights.write_text(weights.read_text().replace('"rms_norm_eps"', '"an_unused_key": 1, "rms_norm_eps"'))
    with pytest.raises(DamagedRelease, match="Build the Bento again"):
        FrozenCatalogue(bundle).load_backbone("cpu")


def test_a_bundled_release_that_was_changed_is_refused(bundle: Path) -> None:
    catalogue = FrozenCatalogue(bundle)
    manifest = bundle / "releases" / "law@1" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(DamagedRelease, match="law@1"):
        catalogue.open(ReleaseName("law", 1))


def test_a_bundle_without_an_index_is_refused(bundle: Path) -> None:
    (bundle / "index.json").write_text("{}")
    with pytest.raises(DamagedRelease, match="index.json"):
        FrozenCatalogue(bundle)
