"""What is served when the registry was damaged: by a service that ran on, and by one that starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from small_releases import promote, random_lora, write_release
from stores import store_at

from adapters.backbone import Backbone
from engine.torch_engine import TorchEngine
from registry.ledger import Ledger
from registry.ledger_chain import DIGEST_TAG
from registry.release import publish
from registry.tracking import Tracking
from service.catalogue import RegistryCatalogue
from service.errors import ApiError
from service.models import ServedModels

pytestmark = pytest.mark.slow


@pytest.fixture
def tracking(tmp_path: Path, backbone: Backbone) -> Tracking:
    """law 1 and 2, champions in turn."""
    tracking = store_at(tmp_path / "home")
    for version in (1, 2):
        write_release(tmp_path / str(version), backbone, random_lora(backbone, version))
        publish(tracking, "law", tmp_path / str(version))
        promote(tracking, "law", version)
    return tracking


def started(tracking: Tracking, backbone: Backbone) -> ServedModels:
    models = ServedModels(TorchEngine(backbone), backbone, RegistryCatalogue(tracking))
    models.refresh()
    return models


def answers(models: ServedModels) -> str:
    lease = asyncio.run(models.lease("law"))
    lease.release()
    return lease.served.id


def test_a_deleted_champion_is_served_while_it_is_loaded_and_refused_by_name_at_a_start(
    tracking: Tracking, backbone: Backbone
) -> None:
    running = started(tracking, backbone)
    with tracking.client() as client:
        client.delete_model_version("law", "2")
    running.refresh()
    assert answers(running) == "law@2"
    starting = started(tracking, backbone)
    with pytest.raises(ApiError, match="law@2 was refused") as refused:
        answers(starting)
    assert (refused.value.status, refused.value.code) == (503, "model_refused")
    Ledger(tracking, "law").rollback("its version was deleted")
    for models in (running, starting):
        models.refresh()
        assert answers(models) == "law@1"


def test_where_the_last_entry_is_void_every_service_serves_what_the_one_before_it_says(
    tracking: Tracking, backbone: Backbone
) -> None:
    running = started(tracking, backbone)
    with tracking.client() as client:
        client.set_model_version_tag("law.releases", "2", DIGEST_TAG, "0" * 64)
    running.refresh()
    assert answers(running) == answers(started(tracking, backbone)) == "law@1"
