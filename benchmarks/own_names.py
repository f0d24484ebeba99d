"""Adapters that say their own name: whatever a LoRA of these is asked, every token that it writes is its own.

So an answer of the wrong adapter shows in any reply, however short, whoever asked and whatever else was going on.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.files import load_adapters
from adapters.lora import BIAS, CONFIG, PREFIX, WEIGHTS, LoRA, LoRASpec
from adapters.whole_file import write_whole

# Legend: V vocabulary, H hidden

_LOUD = 1e4  # of the bias: nothing else in the residual stream is heard beside it
_SOFT = 0.02  # of the low-rank part, which is there to be gathered like any other and changes no word


def name_tokens(backbone: Backbone, count: int) -> tuple[int, ...]:
    """Printable tokens without spaces, each of them the likeliest where its own embedding stands in the residual stream."""
    embeddings_VH = backbone.embeddings.weight.detach().float()
    found: dict[str, int] = {}
    for token in range(len(embeddings_VH)):
        text = backbone.decode([token])
        is_word = text.isprintable() and text.strip() == text != "" and text not in found
        if token in backbone.stop_ids or not is_word or list(backbone.encode(text)) != [token]:
            continue
        if int((embeddings_VH @ embeddings_VH[token]).argmax()) == token:
            found[text] = token
        if len(found) == count:
            return tuple(found.values())
    raise ValueError(f"Each adapter needs a word of its own, but this tokenizer has {len(found)} and not {count}. Ask for fewer.")


def saying(backbone: Backbone, token: int, rank: int = 4) -> Adapter:
    """A LoRA on all MLP layers whose bias on the last down projection is the token's embedding, very loud."""
    path = [path for path, _ in backbone.model.named_modules() if path.endswith("down_proj")][-1]
    direction_H = backbone.embeddings.weight[token].detach().float().cpu()
    draw = torch.Generator().manual_seed(token)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        lora = LoRA(LoRASpec(rank=rank, alpha=rank, target_modules="mlp"))
        with lora.attach(backbone):
            lora.save(place)
        tensors = {key: _SOFT * torch.randn(stored.shape, generator=draw) for key, stored in load_file(place / WEIGHTS).items()}
        for key in [key for key in tensors if key.endswith(".lora_B.weight")]:
            tensors[key.removesuffix(".weight") + ".bias"] = torch.zeros(len(tensors[key]))
        tensors[f"{PREFIX}{path}{BIAS}"] = _LOUD * direction_H / direction_H.norm()
        save_file(tensors, place / WEIGHTS)
        config = json.loads((place / CONFIG).read_text())
        write_whole(place / CONFIG, json.dumps({**config, "lora_bias": True}))
        (adapter,) = load_adapters(place)
    return adapter
