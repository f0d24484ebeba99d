"""The backbone as a directory that vLLM loads: its own one, or its weights as they are in memory, written once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from adapters.backbone import Backbone, cache_directory, fingerprint_of, sources_of
from adapters.errors import UnknownBackbone

_READY = "config.json"


def checkpoint_of(backbone: Backbone, cache: Path | None = None) -> Path:
    """`cache` is where weights are written that have no directory: dequantized, or merged with an update."""
    own = _own_directory(backbone)
    if own is not None:
        return own
    kept = (cache or cache_directory()) / "vllm"
    directory = kept / f"{backbone.fingerprint[:24]}-{str(backbone.dtype).removeprefix('torch.')}"
    if (directory / _READY).is_file():
        return directory
    kept.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=kept, prefix=".part-"))
    try:
        backbone.model.save_pretrained(part)
        backbone.tokenizer.save_pretrained(part)
        try:
            part.rename(directory)
        except OSError:  # another process was first
            if not (directory / _READY).is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return directory


def _own_directory(backbone: Backbone) -> Path | None:
    """None where the files are not the weights: a GGUF file, an update beside them, or a name that means something else here."""
    try:
        sources = sources_of(backbone.name)
    except UnknownBackbone:
        return None
    if sources.gguf is not None or sources.update is not None or fingerprint_of(sources) != backbone.fingerprint:
        return None
    return Path(sources.directory)
