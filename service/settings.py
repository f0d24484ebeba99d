"""Settings: what `bentoml serve`, `graftline serve` and a Bento read from GRAFTLINE_* environment variables."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from engine.vllm.options import VLLMOptions
from registry.names import checked_name
from service.request_log import Format, Level

PREFIX = "GRAFTLINE_"
# What other parts of the project read.
ELSEWHERE = ("ACTOR", "CACHE", "JUDGE_API_KEY", "LLAMA_CPP", "PRICE_PER_HOUR", "SHOW_SOAK", "STORAGE", "VLLM_PYTHON")
STORES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "file", "databricks", "databricks-uc", "uc")
# A Bento carries its backbone and its releases in this folder, beside the `service` package.
BUNDLED = Path(__file__).resolve().parent.parent / "frozen"


class BadSetting(ValueError):
    """A GRAFTLINE_* variable that breaks its rule."""


class Settings(BaseModel):
    """Every field is the environment variable of its name in capitals after GRAFTLINE_; an empty variable is an unset one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    backbone: str = "smollm2-135m-reasoner"
    device: str | None = None
    """None: CUDA when there is one, else the CPU."""
    engine: Literal["torch", "vllm"] = "torch"
    """torch runs in this process and takes every kind of release; vllm needs vLLM installed, and takes LoRA and soft thoughts."""
    home: Path = Path(".graftline")
    tracking_uri: str | None = None
    """None: the SQLite store in the home directory."""
    names: tuple[str, ...] = ()
    """The registered models to serve; empty: every one that has a champion. A comma separates names in the environment."""
    poll_s: float = Field(default=10.0, gt=0, le=30)
    """Seconds between two looks at the ledger. At most 30: that is how soon a promotion is promised to be served."""
    precision: Literal["float32", "bfloat16"] | None = None
    """What the PyTorch engine computes in; None: what the backbone is loaded in. bfloat16 where the device computes it fast."""
    max_rows: int = Field(default=16, ge=1)
    """Completions that run in one batch; more wait."""
    max_cache_tokens: int = Field(default=65536, ge=1)
    """Completions that run times the longest that any of them may become; more wait."""
    prefill_chunk_tokens: int = Field(default=256, ge=1)
    """Tokens of prompts that one step reads beside one token for every completion that runs."""
    max_prefix_tokens: int = Field(default=16384, ge=0)
    """Tokens of prompts and replies that are kept for later requests that begin alike; 0: none."""
    max_adapters: int = Field(default=32, ge=1)
    """Different low-rank adapters that completions run under at the same time; completions under more wait."""
    max_bank_bytes: int = Field(default=2**30, ge=1)
    """Of the weights of those adapters."""
    max_shelf_bytes: int = Field(default=4 * 2**30, ge=1)
    """Of the weights of all loaded adapters, in main memory; one beyond that is refused."""
    max_loaded: int = Field(default=16, ge=1)
    """Releases kept in the engine beside the champions, for NAME@VERSION and NAME@ALIAS; the least recently used leaves first."""
    open_control: bool = False
    """Whether everybody may change an open server without keys: load adapters, start jobs, promote."""
    adapter_directory: Path | None = None
    """Where adapters that are named by a path lie; None: only releases of the registry may be named."""
    max_adapter_bytes: int = Field(default=2 * 2**30, ge=1)
    """Of the weights of an adapter that is named by a path."""
    max_lora_rank: int = Field(default=256, ge=1)
    """Of an adapter that is named by a path."""
    max_named_adapters: int = Field(default=64, ge=0)
    """Adapters that are loaded over HTTP at a time."""
    vllm_max_loras: int = Field(default=8, ge=1)
    """Different adapters in one batch of vLLM."""
    vllm_max_lora_rank: int = 64
    """1, 8, 16, 32, 64, 128, 256, 320 or 512: what vLLM reserves memory for, however small the adapters are."""
    vllm_gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Of the GPU, for vLLM's weights and cache; the service's own copy of the backbone comes on top unless it is on the CPU."""
    vllm_max_model_len: int | None = Field(default=None, ge=16)
    """Tokens of a prompt and its completion; None: the backbone's context."""
    vllm_cache_gib: float | None = Field(default=None, gt=0)
    """Of vLLM's key-value cache; None: what is left of a GPU, 1 on a CPU."""
    vllm_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: the backbone's, and bfloat16 where that is float32 on a device that computes bfloat16 fast."""
    job_recipe: Path | None = None
    """A recipe that fine-tuning jobs begin with: what is protected, the margins, how long a sweep searches."""
    recipes: Path | None = None
    """A folder of recipes that sweeps begin with by their names; None: those that come with Graftline."""
    jobs_at_once: int = Field(default=1, ge=1)
    """Fine-tuning jobs that run; more wait. Promotions run one at a time beside them."""
    max_queued_jobs: int = Field(default=100, ge=1)
    max_job_s: float = Field(default=86400.0, gt=0)
    """Seconds after which a job is ended."""
    max_file_bytes: int = Field(default=512 * 2**20, ge=1)
    """Of an uploaded file."""
    max_files_bytes: int = Field(default=10 * 2**30, ge=1)
    """Of all uploaded files together."""
    webhook_secret: str | None = Field(default=None, min_length=16, repr=False)
    """What MLflow signs its webhooks with; None: no webhook is taken."""
    grace_s: float = Field(default=30.0, gt=0)
    """Seconds after SIGTERM in which what runs may end; then it is cut off."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Of one request from its arrival to its end, waiting included; a request may ask for less."""
    ping_s: float = Field(default=15.0, gt=0)
    """Seconds of silence after which a stream sends a comment, so that no proxy takes it for dead."""
    max_unread: int = Field(default=4096, ge=1)
    """Steps of a reply that may wait for a client that does not read; more end the reply."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that a client of a stream may take to read on; then its connection is closed."""
    max_body_bytes: int = Field(default=10 * 2**20, ge=1)
    """Of one request; files for jobs have a bound of their own."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds in which a request's body must arrive."""
    max_queued_rows: int = Field(default=512, ge=1)
    """Completions that wait for a place in the batch; beyond them a request is refused with 429 at once."""
    max_queued_tokens: int = Field(default=2**20, ge=1)
    """The same in tokens: of the prompts that wait and of the replies that they ask for."""
    host: str = "127.0.0.1"
    """Beyond this machine it must be `open`, or keys must have been made."""
    open: bool = False
    """Without any key, let in whoever reaches the server, and not this machine alone."""
    open_metrics: bool = False
    """Let in whoever asks for /metrics, without a key."""
    port: int = Field(default=3000, ge=1, le=65535)
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of PyTorch; None: its own choice."""
    log_format: Format = "json"
    """One line an event on the standard error stream: JSON, or text for eyes."""
    log_level: Level = "info"
    frozen: Path | None = None
    """A folder that `graftline build` wrote (backbone and releases): served as it is, without a registry."""

    @field_validator("names", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("names")
    @classmethod
    def _models_may_be_called_so(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(checked_name, value))

    @field_validator("tracking_uri")
    @classmethod
    def _mlflow_takes_it(cls, value: str | None) -> str | None:
        scheme = "" if value is None else urlsplit(value).scheme.partition("+")[0]
        if scheme and scheme not in STORES:
            raise ValueError(f"a store begins with one of {', '.join(f'{one}:' for one in STORES)} or is a folder")
        return value

    @field_validator("vllm_max_lora_rank")
    @classmethod
    def _one_that_vllm_reserves(cls, value: int) -> int:
        return VLLMOptions(max_lora_rank=value).max_lora_rank

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Unset fields keep their defaults; inside a Bento, `frozen` is the Bento's own folder."""
        environment = os.environ if environment is None else environment
        variables = {field: environment.get(PREFIX + field.upper()) for field in cls.model_fields}
        given = {field: value for field, value in variables.items() if value}
        if "frozen" not in given and (BUNDLED / "index.json").is_file():
            given["frozen"] = str(BUNDLED)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
            told = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
            rule = f"{name} must fit its rule ({told})"
            raise BadSetting(f"{rule}, but is {first['input']!r}. Correct or unset it.") from error

    def check_here(self) -> None:
        """BadSetting where what is named is not on this machine: a server that cannot start would be started again and again."""
        if self.device is not None:
            _check_device(self.device)
        if self.frozen is not None and not (self.frozen.expanduser() / "index.json").is_file():
            raise _missing("frozen", self.frozen, "a folder that `graftline build` made, with its index.json")
        if self.adapter_directory is not None and not self.adapter_directory.expanduser().is_dir():
            raise _missing("adapter_directory", self.adapter_directory, "a directory")
        if self.recipes is not None and not self.recipes.expanduser().is_dir():
            raise _missing("recipes", self.recipes, "a folder")
        if self.job_recipe is not None and not self.job_recipe.expanduser().is_file():
            raise _missing("job_recipe", self.job_recipe, "a file")

    def environment(self) -> dict[str, str]:
        """The variables that make another process read these same settings; paths become absolute."""
        variables: dict[str, str] = {}
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, Path):
                value = value.expanduser().absolute()
            if isinstance(value, tuple):
                value = ",".join(value)
            variables[PREFIX + field.upper()] = "" if value is None else str(value)
        return variables


def misspelt(environment: Mapping[str, str]) -> list[str]:
    """One sentence for each variable of ours that nothing reads."""
    known = [PREFIX + name for name in (*map(str.upper, Settings.model_fields), *ELSEWHERE)]
    sentences = []
    for name in sorted(name for name in environment if name.startswith(PREFIX) and name not in known):
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
        sentences.append(f"{name} is no setting and is not read. Did you mean {nearest[0]}?")
    return sentences


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device).cpu()
    except Exception as error:  # of many kinds, by the device and how torch was built
        name = f"{PREFIX}DEVICE"
        raise BadSetting(
            f"{name} must be a device that PyTorch finds here (cpu, cuda, cuda:1), but is {device!r}. Correct or unset it."
        ) from error


def _missing(field: str, path: Path, rule: str) -> BadSetting:
    return BadSetting(f"{PREFIX}{field.upper()} must be {rule}, but is {str(path)!r}. Correct or unset it.")
