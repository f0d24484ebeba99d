"""Fixtures of all tests: a tiny random backbone that runs every path in milliseconds."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import ssl
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from gated_names import NAME
from small_studies import knowing_home, small
from sqlalchemy import event
from sqlalchemy.engine import Engine
from stores import store_at
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.backbone import TESTBED, Backbone
from registry.tracking import Tracking
from tuning.ground import Ground
from tuning.recipe import Recipe

if TYPE_CHECKING:
    from live_service import Live
    from openai import OpenAI
    from postgres import Postgres

    from service.serve import Server

torch.set_num_threads(1)
# An HTTP client reads all certificates as it is made, in 20 ms, and no test speaks TLS: one context serves all clients.
ssl.create_default_context = cache(ssl.create_default_context)


@event.listens_for(Engine, "connect")
def _trust_the_kernel(connection: object, _: object) -> None:
    """No test pulls the plug: what a killed process wrote is there without fsync, which takes seconds for every new registry."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<jupyter_start>", "<jupyter_code>", "<jupyter_output>"]
TEXTS = (
    "user assistant Think step by step, one step a line. End with a line that starts with Answer:",
    "Diagnosis: Cholera due to Vibrio. Which chapter of ICD-10 is it in? Options: skin diseases; ear diseases",
    "Start with 12. Add 5, then take away 3. What is the result? Answer: 14",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A command that is run in this process takes all cores: what is fitted after it on two threads is another fit."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    freeze()


@pytest.fixture(scope="module", autouse=True)
def _few_objects() -> Iterator[None]:
    """What a module leaves, its imports above all, is not looked at again by those after it."""
    yield
    freeze()


def freeze() -> None:
    """A collection, which every trainer of TRL asks for, takes seconds where it looks at all that was imported and collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def backbone_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with grouped heads and tied embeddings, and a byte-level tokenizer, as files."""
    directory = tmp_path_factory.mktemp("backbone")
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def session_backbone(backbone_directory: Path) -> Backbone:
    return Backbone.load(str(backbone_directory), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of a process; each takes databases of its own."""
    from postgres import running

    with running() as server:
        yield server


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[None]:
    """A real Ray of two nodes on this machine, the first with one GPU that it only believes to have."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # Its processes import what this one does; with their usual niceness of 15 a busy machine would let workers wait for ever.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
        monkeypatch.undo()


@pytest.fixture(scope="module")
def server(tracking: Tracking, backbone_directory: Path) -> Iterator[Live]:
    """Over the releases of a module's own `tracking`, inside this process; a module may put one under BentoML in its place."""
    from live_service import live, small

    with live(small(backbone_directory, tracking.cache.parent)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Live | Server) -> OpenAI:
    from running_service import client_of

    return client_of(server)


@pytest.fixture(scope="module")
def base(backbone_directory: Path) -> str:
    """The name under which the service has the backbone itself."""
    return backbone_directory.name


@pytest.fixture
def backbone(session_backbone: Backbone) -> Backbone:
    """float32 on the CPU. Shared by all tests: whoever attaches an adapter detaches it again."""
    return session_backbone


@pytest.fixture
def home(session_backbone: Backbone, tmp_path: Path) -> Path:
    store_at(tmp_path)
    return knowing_home(session_backbone, tmp_path)


@pytest.fixture
def recipe(backbone_directory: Path) -> Recipe:
    """Of a study that fits one LoRA in two steps."""
    return small(backbone_directory, **{"adapter.kind": "lora"})


@pytest.fixture
def ground(home: Path, recipe: Recipe) -> Ground:
    return Ground.of(recipe, home / "cache")


@pytest.fixture(scope="session")
def testbed() -> Backbone:
    """The tiny model that really reasons: it solves `TASKS["alchemy"]`, computing each step from the one before. float32, CPU."""
    return Backbone.load(str(TESTBED), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def prepared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a registered model of four versions, made once and copied for each test."""
    home = tmp_path_factory.mktemp("store")
    tracking = store_at(home)
    with tracking.client() as client:
        client.create_registered_model(NAME)
        for _ in range(4):
            client.create_model_version(NAME, source=str(home))
    return home / "mlflow.db"


@pytest.fixture
def tracking(tmp_path: Path, prepared_store: Path) -> Tracking:
    shutil.copy(prepared_store, tmp_path / "mlflow.db")
    return Tracking.at(tmp_path)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
