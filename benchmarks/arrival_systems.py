"""The systems that are sent the same requests. Each is started, asked, and stopped; what it cannot do stands beside it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.arrival_ground import LLAMA_CPP, Ground, name_of
from benchmarks.arrivals import NUM_ADAPTERS
from benchmarks.peft_batches import PeftBatches
from service.serve import start_server
from service.settings import Settings

VLLM_PYTHON = "GRAFTLINE_VLLM_PYTHON"  # a Python with vLLM, and with what `make test-vllm` installs beside it
THREADS = os.cpu_count() or 1
ROWS = 16
CONTEXT = 640  # the longest prompt and reply, with room
ENDLESS = {"ignore_eos": True}  # a reply has the length that was asked for


@dataclass(frozen=True)
class System:
    """`fields` is what a request adds to name its adapter and to have no end; `takes_ids`: prompts are token ids, else texts."""

    url: str  # .../v1
    fields: tuple[Mapping[str, object], ...]
    takes_ids: bool = True


Started = System | PeftBatches
Start = Callable[[Ground], AbstractContextManager[Started]]


@contextmanager
def ours(ground: Ground) -> Iterator[System]:
    """`graftline serve`, the embedded engine in bfloat16, behind BentoML."""
    port = free_port()
    settings = Settings(
        backbone=ground.backbone,
        device="cpu",
        home=ground.home,
        port=port,
        precision="bfloat16",
        threads=THREADS,
        max_rows=ROWS,
        log_level="warning",
    )
    with start_server(settings, log_file=ground.folder / "ours.log", timeout_s=300) as server:
        yield System(server.openai_url, tuple({"model": name_of(i), **ENDLESS} for i in range(NUM_ADAPTERS)))


@contextmanager
def ours_on_vllm(ground: Ground) -> Iterator[System]:
    """`graftline serve --engine vllm` with the same settings as vLLM's own server has beside it."""
    port = free_port()
    settings = Settings(
        backbone=ground.backbone,
        device="cpu",
        home=ground.home,
        port=port,
        engine="vllm",
        max_rows=ROWS,
        vllm_max_loras=NUM_ADAPTERS,
        vllm_max_lora_rank=16,
        vllm_max_model_len=CONTEXT,
        vllm_cache_gib=2.0,
        vllm_dtype="bfloat16",
        log_level="warning",
    )
    command = [_vllm_python(), "-c", "from service.cli import main; main()", "serve"]
    environment = {**settings.environment(), "PYTHONPATH": str(Path(__file__).parent.parent), "BENTOML_DO_NOT_TRACK": "True"}
    with process(command, ground.folder / "ours_on_vllm.log", f"http://127.0.0.1:{port}/readyz", environment):
        yield System(f"http://127.0.0.1:{port}/v1", tuple({"model": name_of(i), **ENDLESS} for i in range(NUM_ADAPTERS)))


def _vllm_python() -> str:
    python = os.environ.get(VLLM_PYTHON)
    if not python:
        raise RuntimeError(f"vLLM runs where {VLLM_PYTHON} names a Python that has it, but the variable is not set")
    return python


@contextmanager
def vllm_cpu(ground: Ground) -> Iterator[System]:
    """vLLM's own server with eight LoRAs in bfloat16. On a CPU its base rows are wrong beside LoRA rows; none is asked for."""
    python, port = _vllm_python(), free_port()
    loras = [f"{name_of(i)}={ground.adapter(i)}" for i in range(NUM_ADAPTERS)]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(ground.model), "--served-model-name", "base"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--max-model-len", str(CONTEXT)]
    command += ["--max-num-seqs", str(ROWS), "--enable-lora", "--max-loras", str(NUM_ADAPTERS), "--max-lora-rank", "16"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    with process(
        [*command, "--lora-modules", *loras], ground.folder / "vllm.log", f"http://127.0.0.1:{port}/health", environment
    ):
        yield System(f"http://127.0.0.1:{port}/v1", tuple({"model": name_of(i), **ENDLESS} for i in range(NUM_ADAPTERS)))


@contextmanager
def transformers_serve(ground: Ground) -> Iterator[System]:
    """It has no adapters: the backbone alone, with continuous batching, which is less work than the others do."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(ground.model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--continuous-batching", "--dtype", "bfloat16", "--device", "cpu"]
    with process(command, ground.folder / "transformers.log", f"http://127.0.0.1:{port}/health", {"HF_HUB_OFFLINE": "1"}):
        # It answers 422 to `ignore_eos`, as to all that it does not know; a token that is none is an end that never comes.
        asked = {"model": str(ground.model), "generation_config": json.dumps({"eos_token_id": -1})}
        yield System(f"http://127.0.0.1:{port}/v1", (asked,) * NUM_ADAPTERS, takes_ids=False)


@contextmanager
def llama_cpp(ground: Ground) -> Iterator[System]:
    """llama.cpp's server in bfloat16; requests of different adapters are not batched together there."""
    model, loras = ground.gguf()
    port = free_port()
    command = [str(Path(os.environ[LLAMA_CPP]) / "build" / "bin" / "llama-server"), "-m", str(model), "--lora-init-without-apply"]
    command += [part for file in loras for part in ("--lora", str(file))]
    command += ["-np", str(ROWS), "-c", str(ROWS * CONTEXT), "-t", str(THREADS), "--host", "127.0.0.1", "--port", str(port)]
    with process(command, ground.folder / "llama.log", f"http://127.0.0.1:{port}/health", {}):
        scales = [[{"id": j, "scale": float(i == j)} for j in range(NUM_ADAPTERS)] for i in range(NUM_ADAPTERS)]
        yield System(f"http://127.0.0.1:{port}/v1", tuple({"model": "base", "lora": scale, **ENDLESS} for scale in scales))


@contextmanager
def peft_static(ground: Ground) -> Iterator[PeftBatches]:
    """PEFT's mixed batches (`adapter_names`), as they are used without a server: whoever waits when one ends makes the next."""
    yield PeftBatches.loaded(ground.model, [ground.adapter(i) for i in range(NUM_ADAPTERS)], ROWS, THREADS)


SYSTEMS: dict[str, Start] = {
    "ours": ours,
    "peft adapter_names": peft_static,
    "transformers serve": transformers_serve,
    "vllm-cpu": vllm_cpu,
    "ours on vllm-cpu": ours_on_vllm,
    "llama.cpp server": llama_cpp,
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def process(
    command: list[str], log: Path, health: str, environment: Mapping[str, str], within_s: float = 300.0
) -> Iterator[None]:
    """A server that answers, ended with all its children."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        ends = time.monotonic() + within_s
        while not _answers(health):
            if started.poll() is not None or time.monotonic() > ends:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise RuntimeError(f"{Path(command[0]).name} did not start: {last}")
            time.sleep(0.5)
        yield
    finally:
        try:
            os.killpg(started.pid, signal.SIGTERM)
            started.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        try:
            os.killpg(started.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        started.wait()


def _answers(health: str) -> bool:
    try:
        return httpx.get(health, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
