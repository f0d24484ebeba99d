"""What every system serves: the default backbone and eight LoRAs of rank 16 on all linear layers, in each system's own files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from adapters.whole_file import write_whole
from benchmarks.arrivals import NUM_ADAPTERS
from benchmarks.fault_world import write_files
from registry.ledger import Ledger
from registry.release import publish
from registry.tracking import Tracking

# A folder of llama.cpp with its converters, and build/bin/llama-server in it. Some compilers' GGML_NATIVE ends with SIGILL on
# machines with AMX: build it there with GGML_NATIVE=OFF and the AVX-512 flags. Its converter imports sentencepiece.
LLAMA_CPP = "GRAFTLINE_LLAMA_CPP"
SIZE = 0.01  # of the adapters' random weights: what they write matters to nobody here


@dataclass(frozen=True)
class Ground:
    folder: Path
    backbone: str
    vocabulary: tuple[int, ...]  # tokens of plain words

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def model(self) -> Path:
        """The backbone as Hugging Face files."""
        return self.folder / "model"

    def adapter(self, index: int) -> Path:
        """A PEFT directory."""
        return self.folder / "peft" / name_of(index)

    @classmethod
    def made(cls, backbone_name: str, folder: Path) -> Ground:
        """Made once, kept in the folder; ValueError where that is another backbone's."""
        done = folder / "ground.json"
        if done.is_file():
            kept = json.loads(done.read_text())
            if kept.get("backbone", backbone_name) != backbone_name:
                raise ValueError(f"{folder} is made of {kept['backbone']}, not of {backbone_name}. Give each --rows of its own.")
            return cls(folder.absolute(), backbone_name, tuple(kept["vocabulary"]))
        shutil.rmtree(folder, ignore_errors=True)
        backbone = Backbone.load(backbone_name, device="cpu")
        ground = cls(folder.absolute(), backbone_name, _words(backbone))
        backbone.model.to(torch.bfloat16).save_pretrained(ground.model)  # type: ignore[arg-type]
        backbone.tokenizer.save_pretrained(ground.model)
        backbone = Backbone.load(backbone_name, device="cpu")
        tracking = Tracking.at(ground.home).create()
        for index in range(NUM_ADAPTERS):
            adapter = _random(backbone, index)
            write_files(ground.folder / "releases" / name_of(index), backbone, adapter)
            publish(tracking, name_of(index), ground.folder / "releases" / name_of(index))
            Ledger(tracking, name_of(index)).promote(1, None, override=True, reason="a benchmark of serving")
            ground.adapter(index).mkdir(parents=True)
            adapter.save(ground.adapter(index))
        write_whole(done, json.dumps({"backbone": backbone_name, "vocabulary": ground.vocabulary}))
        return ground

    def gguf(self) -> tuple[Path, list[Path]]:
        """The same for llama.cpp, made by its own converters; RuntimeError where there are none."""
        place = os.environ.get(LLAMA_CPP)
        if not place:
            raise RuntimeError(f"llama.cpp runs where {LLAMA_CPP} names its folder, built, but the variable is not set")
        model, loras = self.folder / "model.gguf", [self.folder / f"{name_of(i)}.gguf" for i in range(NUM_ADAPTERS)]
        if not model.is_file():
            _convert(place, "convert_hf_to_gguf.py", str(self.model), "--outtype", "bf16", "--outfile", str(model))
        for index, file in enumerate(loras):
            if not file.is_file():
                arguments = ("--base", str(self.model), "--outtype", "bf16", "--outfile", str(file), str(self.adapter(index)))
                _convert(place, "convert_lora_to_gguf.py", *arguments)
        return model, loras


def name_of(index: int) -> str:
    return f"a{index}"


def _random(backbone: Backbone, seed: int) -> LoRA:
    lora = LoRA(LoRASpec(rank=16, alpha=32, seed=seed))
    draw = torch.Generator().manual_seed(seed)
    with lora.attach(backbone), torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(SIZE * torch.randn(parameter.shape, generator=draw))
    return lora


def _words(backbone: Backbone, count: int = 500) -> tuple[int, ...]:
    """Tokens of a space and a word, so that a text of them has as many tokens in every tokenizer of the same files."""
    found: list[int] = []
    for token in range(backbone.embeddings.num_embeddings):
        text = backbone.decode([token])
        if len(text) > 3 and text[0] == " " and text[1:].isalpha() and text[1:].islower():
            found.append(token)
        if len(found) == count:
            break
    return tuple(found)


def _convert(place: str, script: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, str(Path(place) / script), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
