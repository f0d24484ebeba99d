"""Soft chain of thought: a small assistant thinks, a projection translates, the backbone reads.

SoftCoT (Xu et al. 2025, arXiv 2502.12134): soft thoughts stand at the end of the user's turn between two marker tokens.
The assistant is the backbone's own lower layers, or another model; it reads the prompt once and is never trained. A soft
thought is `seed + gate * W(LayerNorm(h))`: it starts at the embedding of an unused token, so training starts at the
backbone's own behaviour. `static=True` drops the second term: the control arm that knows nothing of the question.

SoftCoT++ (Xu et al. 2025, arXiv 2505.11484): each of `num_chains` sets of thoughts has a learned initial token, which stands at
the thought places of what the assistant reads; they share the projection. The static arm learns that many sets directly.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import field_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.adapter import Adapter, Contribution, Prompt
from adapters.backbone import Backbone
from adapters.errors import BackboneMismatch, DamagedAdapter, RefusedAdapter
from adapters.lora import CONFIG, WEIGHTS, adapters_off
from adapters.spec import Range, Spec
from adapters.weights import digest_of, read_tensors

# Legend: N chains, K thoughts, D assistant width, H backbone width, T tokens

ASSISTANT_INSTRUCTION = (
    "Generate {count} tokens that help another language model with the problem below, the most informative first: "
    "the names and numbers that matter, and what to do with them.\n"
)
_CACHED_BYTES = 2**28  # of states that are kept for prompts that come again
_TOKEN_BYTES = 36  # that a token of a kept prompt takes
# The hook that stops a forward hangs on the backbone itself: one thread's would stop another's, and take its states for its own.
_STOPPING = threading.Lock()


class SoftCoTSpec(Spec):
    """`assistant` is None for the backbone's own lower `assistant_layers` layers, else a model directory or id."""

    kind: Literal["softcot"] = "softcot"
    num_thoughts: Annotated[int, Range(2, 16, log=True)] = 6
    assistant_layers: Annotated[int, Range(4, 16)] = 8
    assistant: str | None = None
    gate: Annotated[float, Range(0.02, 0.5, log=True)] = 0.1
    num_chains: int = 1  # sets of thoughts; the paper takes 10, and each costs an assistant's read and a written reply
    static: bool = False
    seed: int = 0

    @field_validator("num_thoughts", "assistant_layers", "num_chains")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError(f"num_thoughts, assistant_layers and num_chains must be at least 1, but got {value}.")
        return value


class _Projection(nn.Module):
    def __init__(self, spec: SoftCoTSpec, seed_KH: Tensor, slot_D: Tensor) -> None:
        super().__init__()
        width, width_in = seed_KH.shape[-1], len(slot_D)
        generator = torch.Generator().manual_seed(spec.seed)
        self.static = spec.static
        self.seed = nn.Parameter(seed_KH.clone())
        self.norm = nn.LayerNorm(width_in)
        self.linear = nn.Linear(width_in, width, bias=False)
        nn.init.orthogonal_(self.linear.weight, generator=generator)
        # An orthogonal map of a normalised vector has norm sqrt(D): the gate is in units of one embedding's norm.
        self.gate = nn.Parameter(seed_KH.norm(dim=-1).mean() * spec.gate / width_in**0.5)
        if spec.num_chains > 1 and not self.static:
            # As far from each other as unrelated tokens are; the first is the unused token itself.
            self.initial = nn.Parameter(slot_D + _noise(spec.num_chains, slot_D, generator))
        if spec.num_chains > 1 and self.static:
            self.seed = nn.Parameter(seed_KH + spec.gate * _noise(spec.num_chains, seed_KH, generator))
        if self.static:
            for part in (self.norm.weight, self.norm.bias, self.linear.weight, self.gate):
                part.requires_grad_(False)

    def forward(self, states_KD: Tensor) -> Tensor:
        thoughts_KH: Tensor = self.seed + self.gate * self.linear(self.norm(states_KD.to(self.seed.dtype)))
        return thoughts_KH


def _noise(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """[count, *like.shape], each vector about as long as those it is like; zeros first."""
    size = like.norm(dim=-1, keepdim=True) / like.shape[-1] ** 0.5
    noise: Tensor = torch.randn((count, *like.shape), generator=generator) * size
    noise[0] = 0.0
    return noise


class _Reached(Exception):
    """Raised by a hook to stop a forward at the wanted layer."""


class SoftCoT:
    """Leaves every weight of the backbone alone; only the prompt that the backbone reads changes."""

    def __init__(self, spec: SoftCoTSpec, scale: float = 1.0, tensors: dict[str, Tensor] | None = None) -> None:
        self.spec = spec
        self.scale = scale
        self._tensors = tensors
        self._projection: _Projection | None = None
        self._backbone_fingerprint: str | None = None
        self._states: dict[tuple[int, ...], Tensor] = {}
        self._assistant: Backbone | None = None

    @contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        projection = self._bound(backbone)
        projection.train()
        for name, parameter in projection.named_parameters():
            parameter.requires_grad_(not self.spec.static or name == "seed")
        try:
            yield
        finally:
            projection.requires_grad_(False)
            projection.eval()

    def transform(self, backbone: Backbone, prompt: Prompt) -> Prompt:
        """Inserts marker, thoughts, marker before the end of the user's turn (or at the end of a raw prompt)."""
        if prompt.soft_KH is not None:
            raise RefusedAdapter("A prompt takes soft thoughts from one adapter only, but two SoftCoT adapters were stacked.")
        if not 0 <= prompt.chain < self.spec.num_chains:
            raise RefusedAdapter(
                f"Sets of soft thoughts are counted from 0 to {self.spec.num_chains - 1} here, but {prompt.chain} was asked for."
            )
        return self.placed(backbone, prompt.ids, self.thoughts(backbone, prompt.ids, [prompt.chain])[0], prompt.chain)

    def placed(self, backbone: Backbone, ids: tuple[int, ...], soft_KH: Tensor, chain: int = 0) -> Prompt:
        """The prompt with these thoughts."""
        slot, opening, closing = _tokens(backbone)
        header = backbone.assistant_header
        is_chat = ids[-len(header) :] == header
        body, tail = (ids[: -len(header)], header) if is_chat else (ids, ())
        whole = (*body, opening, *(slot for _ in range(self.spec.num_thoughts)), closing, *tail)
        return Prompt(whole, soft_KH, len(body) + 1, chain)

    def thoughts(self, backbone: Backbone, ids: tuple[int, ...], chains: Sequence[int] | None = None) -> Tensor:
        """The sets of thoughts of one prompt, [N, K, H]: all, or those of the chains."""
        projection = self._bound(backbone)
        chosen = list(range(self.spec.num_chains) if chains is None else chains)
        if self.spec.static:
            soft_NKH = projection.seed[chosen] if self.spec.num_chains > 1 else projection.seed[None]
        elif self.spec.num_chains > 1:
            soft_NKH = projection(self._think(backbone, ids, projection.initial[chosen]))
        else:
            soft_NKH = projection(self.states(backbone, ids))[None]
        if self.scale != 1.0:
            slot, _, _ = _tokens(backbone)
            start_NKH = backbone.embeddings.weight[slot].detach().to(soft_NKH).expand_as(soft_NKH)
            soft_NKH = start_NKH + self.scale * (soft_NKH - start_NKH)
        return soft_NKH

    def states(self, backbone: Backbone, ids: tuple[int, ...]) -> Tensor:
        """The assistant's hidden states at the thought places of the one set, [K, D]; computed once a prompt."""
        found = self._states.get(ids)
        if found is None:
            with torch.no_grad():
                found = self._think(backbone, ids)[0]
            if len(self._states) * (found.nbytes + _TOKEN_BYTES * len(ids)) > _CACHED_BYTES:
                self._states.clear()  # other threads hold what they have found
            self._states[ids] = found
        return found

    def num_read(self, backbone: Backbone, ids: tuple[int, ...]) -> int:
        """Tokens that the assistant reads for one set of thoughts of the prompt, the places of the thoughts among them."""
        if self.spec.static:
            return 0
        return len(self._read(self._assistant_model(backbone), backbone, ids)) + self.spec.num_thoughts

    def contribution(self) -> Contribution:
        return Contribution()

    def parameters(self) -> Iterator[nn.Parameter]:
        if self._projection is None:
            raise RuntimeError("A SoftCoT has parameters only while it is attached: use `with softcot.attach(backbone):`.")
        return (p for p in self._projection.parameters() if p.requires_grad)

    def scaled(self, factor: float) -> SoftCoT:
        scaled = SoftCoT(self.spec, self.scale * factor, self.tensors())
        scaled._backbone_fingerprint = self._backbone_fingerprint
        scaled._states = self._states  # frozen assistant: the same prompt has the same states
        return scaled

    def apart(self) -> SoftCoT:
        """The same thoughts now, over states of its own: read amid a fit, they may differ in their last bits."""
        copy = self.scaled(1.0)
        copy._states = {}
        return copy

    def scaled_by_layer(self, factors: Sequence[float]) -> SoftCoT:
        return self

    def tensors(self) -> dict[str, Tensor]:
        if self._projection is not None:
            return {key: tensor.detach().clone() for key, tensor in self._projection.state_dict().items()}
        if self._tensors is None:
            raise RuntimeError("This SoftCoT was never attached, so it has no weights yet.")
        return self._tensors

    def digest(self) -> str:
        """SHA-256 over what a fit starts from: the weights, if there are any, and the scale."""
        fitted = self._projection is not None or self._tensors is not None
        return digest_of(self.tensors() if fitted else {}, self.scale)

    def save(self, directory: Path) -> None:
        save_file({key: tensor.float().contiguous() for key, tensor in self.tensors().items()}, directory / WEIGHTS)
        config = {
            "peft_type": "SOFTCOT",
            "format_version": 1,
            "spec": self.spec.model_dump(),
            "scale": self.scale,
            "backbone_fingerprint": self._backbone_fingerprint,
        }
        (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> SoftCoT:
        try:
            config = json.loads((directory / CONFIG).read_text())
            loaded = cls(SoftCoTSpec(**config["spec"]), config["scale"], read_tensors(directory / WEIGHTS))
            loaded._backbone_fingerprint = config["backbone_fingerprint"]
        except DamagedAdapter:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DamagedAdapter(f"{directory / CONFIG} is not a SoftCoT config ({error!r}). Save the adapter again.") from error
        return loaded

    def _bound(self, backbone: Backbone) -> _Projection:
        """The projection, made for (or checked against) this backbone."""
        if self._backbone_fingerprint not in (None, backbone.fingerprint):
            raise BackboneMismatch(
                f"These soft thoughts were fitted on backbone {str(self._backbone_fingerprint)[:12]}, this one is "
                f"{backbone.fingerprint[:12]}. Load that backbone, or fit again."
            )
        if self._projection is None:
            slot, _, _ = _tokens(backbone)
            seed_KH = backbone.embeddings.weight[slot].detach().float().cpu().repeat(self.spec.num_thoughts, 1)
            assistant = self._assistant_model(backbone)
            slot_D = assistant.embeddings.weight[_tokens(assistant)[0]].detach().float().cpu()
            self._projection = _Projection(self.spec, seed_KH, slot_D)
            if self._tensors is not None:
                try:
                    self._projection.load_state_dict(self._tensors)
                except RuntimeError as error:
                    raise DamagedAdapter(f"The soft-thought weights do not fit this backbone: {error}") from error
            self._projection.to(backbone.device).requires_grad_(False).eval()
            self._backbone_fingerprint = backbone.fingerprint
        return self._projection

    def _assistant_model(self, backbone: Backbone) -> Backbone:
        if self.spec.assistant is None:
            return backbone
        if self._assistant is None:
            self._assistant = Backbone.load(self.spec.assistant, device=str(backbone.device))
        return self._assistant

    def _read(self, assistant: Backbone, backbone: Backbone, ids: tuple[int, ...]) -> list[int]:
        """What the assistant reads before the places of the thoughts."""
        prompt = list(ids) if assistant is backbone else assistant.encode(backbone.decode(ids))
        instruction = assistant.encode(ASSISTANT_INSTRUCTION.format(count=self.spec.num_thoughts))
        return [*instruction, *prompt, _tokens(assistant)[1]]

    def _think(self, backbone: Backbone, ids: tuple[int, ...], initial_ND: Tensor | None = None) -> Tensor:
        """States at the thought places, [N, K, D]: one set a learned initial token, or one of the unused token."""
        assistant = self._assistant_model(backbone)
        count, (slot, _, _) = self.spec.num_thoughts, _tokens(assistant)
        read_T = torch.tensor(self._read(assistant, backbone, ids), device=assistant.device)
        embeddings: nn.Embedding = assistant.embeddings
        before_TD = embeddings(read_T).detach()
        if initial_ND is None:
            initial_ND = embeddings.weight[slot].detach()[None]
        initial_ND = initial_ND.to(before_TD)
        embeds_NTD = torch.cat((before_TD.expand(len(initial_ND), -1, -1), initial_ND[:, None].expand(-1, count, -1)), dim=1)
        depth = min(self.spec.assistant_layers, len(assistant.layers)) if assistant is backbone else None
        with adapters_off(backbone.model):
            return _states(assistant, embeds_NTD, depth)[:, -count:].float()


def states_at_layer(backbone: Backbone, ids: list[int], depth: int) -> Tensor:
    """Hidden states after `depth` decoder layers, [T, H]; the layers above are not computed."""
    return _states(backbone, backbone.embeddings(torch.tensor([ids], device=backbone.device)), depth)[0]


def _states(backbone: Backbone, embeds_NTD: Tensor, depth: int | None) -> Tensor:
    """[N, T, D] after so many decoder layers; None: after the last one and its norm, as another model's states are read."""
    if depth is None:
        last: Tensor = backbone.decoder(inputs_embeds=embeds_NTD, use_cache=False).last_hidden_state
        return last
    reached: list[Tensor] = []

    def stop(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        reached.append(output if isinstance(output, Tensor) else output[0])
        raise _Reached

    with _STOPPING:
        hook = backbone.layers[depth - 1].register_forward_hook(stop)
        try:
            backbone.decoder(inputs_embeds=embeds_NTD, use_cache=False)
        except _Reached:
            pass
        finally:
            hook.remove()
    return reached[0]


def _tokens(backbone: Backbone) -> tuple[int, int, int]:
    """Slot, opening and closing marker: unused special tokens where the tokenizer has them, else the end token thrice."""
    names = ("<jupyter_code>", "<jupyter_start>", "<jupyter_output>")
    vocabulary = backbone.tokenizer.get_vocab()
    if all(name in vocabulary for name in names):
        slot, opening, closing = (vocabulary[name] for name in names)
        return slot, opening, closing
    end = int(backbone.tokenizer.eos_token_id)
    return end, end, end


if TYPE_CHECKING:
    _: Adapter = SoftCoT(SoftCoTSpec())
