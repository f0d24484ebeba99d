"""Which engine the settings name, and what the service says of one that another process computes for."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI

from adapters.backbone import Backbone
from engine.engine import Mortal
from engine.errors import EngineDied
from engine.torch_engine import TorchEngine
from service.engines import engine_of, in_context, vllm_options
from service.errors import from_engine
from service.settings import BadSetting, Settings
from service.startup import is_alive


@dataclass
class Ending:
    death: str | None = None


def test_the_engine_is_the_one_of_this_process_unless_another_is_named(backbone: Backbone) -> None:
    engine = engine_of(Settings(), backbone)
    assert isinstance(engine, TorchEngine) and not isinstance(engine, Mortal)
    engine.close()


def test_the_service_counts_on_no_more_room_than_vllm_is_given(backbone: Backbone) -> None:
    narrow = Settings(engine="vllm", vllm_max_model_len=64)
    assert in_context(backbone, narrow).context_length == 64
    wide = narrow.model_copy(update={"vllm_max_model_len": 10 * backbone.context_length})
    assert in_context(backbone, wide).context_length == backbone.context_length
    assert in_context(backbone, Settings(vllm_max_model_len=64)) is backbone


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_where_it_is_not_installed_is_refused_with_the_way_to_install_it(backbone: Backbone) -> None:
    with pytest.raises(BadSetting, match=r"graftline\[vllm\]"):
        engine_of(Settings(engine="vllm"), backbone)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has an environment of its own")
def test_the_settings_reach_vllm() -> None:
    options = vllm_options(Settings(engine="vllm", vllm_max_loras=3, vllm_max_lora_rank=16, max_rows=5, max_loaded=7))
    assert (options.max_loras, options.max_lora_rank, options.max_rows, options.max_loaded) == (3, 16, 5, 10)


@pytest.mark.parametrize(
    ("variable", "value"), [("VLLM_MAX_LORA_RANK", "24"), ("ENGINE", "llama"), ("VLLM_GPU_MEMORY_UTILIZATION", "2")]
)
def test_a_setting_that_breaks_its_rule_is_refused_by_its_variable(variable: str, value: str) -> None:
    with pytest.raises(BadSetting, match=f"GRAFTLINE_{variable}"):
        Settings.from_environment({f"GRAFTLINE_{variable}": value})


def test_another_process_reads_the_same_settings() -> None:
    settings = Settings(engine="vllm", vllm_max_loras=3, vllm_cache_gib=0.5, home=Path.cwd())
    assert Settings.from_environment(settings.environment()) == settings


def test_a_service_whose_engine_has_ended_is_not_alive() -> None:
    app = FastAPI()
    assert is_alive(app)  # while it starts
    engine = Ending()
    app.state.parts = SimpleNamespace(engine=engine)
    assert is_alive(app)
    engine.death = "its process ended"
    assert not is_alive(app)


def test_a_request_to_an_engine_that_has_ended_may_be_tried_elsewhere() -> None:
    error = from_engine(EngineDied("It ended."), "one")
    assert (error.status, error.code, error.headers["retry-after"]) == (503, "engine_ended", "10")


if TYPE_CHECKING:
    _: Mortal = Ending()
