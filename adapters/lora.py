"""LoRA: low-rank updates of the backbone's linear layers, in PEFT's layers and PEFT's files."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import field_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.adapter import Adapter, Contribution, LowRank, Prompt
from adapters.backbone import Backbone
from adapters.errors import DamagedAdapter, RefusedAdapter
from adapters.lora_linear import with_fast_layers
from adapters.orthogonal import Apart
from adapters.residual import ResidualShift
from adapters.spec import Choices, Range, Spec
from adapters.weights import digest_of, read_tensors

TargetModules = Literal["all-linear", "attention", "mlp"]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_INITS = ("default", "gaussian", "orthogonal", "null_space")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_LAYER = re.compile(r"\.(\d+)\.")
_KEY = re.compile(re.escape(PREFIX) + r".+\.lora_(?:[AB]\.weight|B\.bias)")
BIAS = ".lora_B.bias"
_CONVERT = "Convert it to a plain LoRA (merge it and extract the difference), or fit it again without that."
# What a config may say of a plain LoRA: read here, told by the tensors, or of no effect once it is fitted.
_PLAIN = frozenset(
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r lora_alpha lora_dropout "
    "use_rslora init_lora_weights lora_bias target_modules exclude_modules layers_to_transform layers_pattern fan_in_fan_out "
    "loftq_config eva_config corda_config lora_ga_config".split()
)


class LoRASpec(Spec):
    """The update is (alpha / rank) B A on each targeted layer."""

    kind: Literal["lora"] = "lora"
    rank: Annotated[int, Range(4, 64, log=True)] = 16
    alpha: Annotated[int, Range(8, 128, log=True)] = 32
    dropout: Annotated[float, Range(0.0, 0.1)] = 0.0
    target_modules: Annotated[TargetModules, Choices(("all-linear", "attention", "mlp"))] = "all-linear"
    band: Annotated[Literal["all", "lower", "middle", "upper"], Choices(("all", "lower", "middle", "upper"))] = (
        "all"  # which third of the layers
    )
    init: str = "default"  # null_space: see adapters.null_space
    freeze_a: bool = False  # only B is fitted
    seed: int = 0

    @field_validator("rank", "alpha")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError(f"rank and alpha must be at least 1, but got {value}.")
        return value

    @field_validator("dropout")
    @classmethod
    def _a_share(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError(f"dropout must lie in [0, 1), but got {value}.")
        return value

    @field_validator("init")
    @classmethod
    def _keeps_the_base(cls, value: str) -> str:
        if value not in _INITS:
            raise RefusedAdapter(
                f"A LoRA init must leave the backbone's weights as they are: one of {', '.join(_INITS)}, but got {value!r}. "
                "PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA rewrite the base weight, which breaks the frozen backbone, switching "
                "between adapters and every comparison with the backbone."
            )
        return value


class LoRA:
    """Holds its weights on its own (PEFT's keys); `attach` lends them to the backbone."""

    def __init__(self, spec: LoRASpec, scale: float = 1.0, tensors: dict[str, Tensor] | None = None) -> None:
        self.spec = spec
        self.scale = scale
        self.apart: Apart | None = None  # what a fit keeps it apart from
        self._tensors = tensors
        self._live: PeftModel | None = None

    @contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        if self._live is not None:
            raise RuntimeError("This LoRA is attached already; leave that context first.")
        if self.spec.init == "null_space" and self._tensors is None:
            raise RefusedAdapter(
                "init = 'null_space' starts from the inputs of a retention set, but this LoRA was given none. Fit it by a "
                "recipe, whose protected families are the set, or make it with adapters.null_space.null_space_start."
            )
        modules_before = dict(backbone.model.named_modules())
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a name that transformers renames
            warnings.filterwarnings("ignore", "`lora_bias=True` was passed")  # that it cannot be merged: nothing here is
            torch.manual_seed(self.spec.seed)
            peft_model = get_peft_model(backbone.model, with_fast_layers(self.config(backbone)))
        try:
            if self._tensors is not None:
                set_peft_model_state_dict(peft_model, self._tensors)
            if self.spec.freeze_a:
                for name, parameter in peft_model.named_parameters():
                    parameter.requires_grad_(parameter.requires_grad and "lora_A" not in name)
            self._live = peft_model
            yield
        finally:
            if self._live is not None:
                self._tensors = self._live_tensors()
                self._live = None
            detach(backbone.model, modules_before)

    def transform(self, backbone: Backbone, prompt: Prompt) -> Prompt:
        return prompt

    def contribution(self) -> Contribution:
        tensors, low_rank = self.tensors(), {}
        for key, a_RI in tensors.items():
            if key.endswith("lora_A.weight"):
                path = key.removesuffix(".lora_A.weight")
                b_OR, bias_O = tensors[f"{path}.lora_B.weight"], tensors.get(path + BIAS)
                scaling = self.spec.alpha * self.scale / self.spec.rank
                low_rank[path.removeprefix(PREFIX)] = LowRank(a_RI, b_OR * scaling, None if bias_O is None else bias_O * scaling)
        return Contribution(low_rank)

    def parameters(self) -> Iterator[nn.Parameter]:
        if self._live is None:
            raise RuntimeError("A LoRA has parameters only while it is attached: use `with lora.attach(backbone):`.")
        return (p for n, p in self._live.named_parameters() if "lora_" in n and p.requires_grad)

    def penalty(self) -> Tensor | None:
        if self.apart is None:
            return None
        assert self._live is not None, "a penalty is asked for during a fit"
        low = ".lora_A.default.weight"
        live = {n.removeprefix(PREFIX).removesuffix(low): p for n, p in self._live.named_parameters() if n.endswith(low)}
        return self.apart.penalty(live)

    def digest(self) -> str:
        """SHA-256 over what a fit starts from: the weights, if there are any, the scale, and what it is kept apart from."""
        return digest_of(self._tensors or {}, self.scale, *([self.apart.digest()] if self.apart else []))

    @property
    def peft_model(self) -> PeftModel:
        """PEFT's model around the backbone; only while attached."""
        if self._live is None:
            raise RuntimeError("A LoRA has a PEFT model only while it is attached: use `with lora.attach(backbone):`.")
        return self._live

    def scaled(self, factor: float) -> LoRA:
        return LoRA(self.spec, self.scale * factor, self.tensors())

    def scaled_by_layer(self, factors: Sequence[float]) -> LoRA:
        def scaled(key: str, tensor: Tensor) -> Tensor:
            layer = _LAYER.search(key)
            return tensor * factors[int(layer[1])] if layer and "lora_B" in key else tensor

        return LoRA(self.spec, self.scale, {key: scaled(key, tensor) for key, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The weights under PEFT's names, detached."""
        if self._live is not None:
            return self._live_tensors()
        if self._tensors is None:
            raise RuntimeError("This LoRA was never attached, so it has no weights yet.")
        return self._tensors

    def save(self, directory: Path) -> None:
        """Plain PEFT files: `PeftModel.from_pretrained(model, directory)` loads them, the scale folded into alpha."""
        tensors = {key: tensor.float().contiguous() for key, tensor in self.tensors().items()}
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        config = LoraConfig(
            r=self.spec.rank,
            lora_alpha=self.spec.alpha * self.scale,
            lora_dropout=self.spec.dropout,
            target_modules=sorted(
                {key.removeprefix(PREFIX).removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key}
            ),
            lora_bias=self.has_bias,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        config.save_pretrained(directory)

    @classmethod
    def load(cls, directory: Path) -> LoRA:
        """Reads plain PEFT files, ours or anyone's, as long as they are one plain LoRA."""
        try:
            config = LoraConfig.from_pretrained(directory)
        except (OSError, ValueError, TypeError) as error:
            raise DamagedAdapter(f"{directory / CONFIG} is not a LoRA config ({error}). Save the adapter again.") from error
        _refuse_more_than_lora(directory)
        if isinstance(config.init_lora_weights, str) and config.init_lora_weights not in (*_INITS, "eva"):
            raise RefusedAdapter(
                f"{directory} was fitted from init_lora_weights={config.init_lora_weights!r}, which rewrites the base weight: "
                "on the frozen backbone it computes something else. Convert it to a plain LoRA first "
                "(PEFT's save_pretrained with path_initial_model_for_weight_conversion)."
            )
        tensors = read_tensors(directory / WEIGHTS)
        for key, tensor in tensors.items():
            if not _KEY.fullmatch(key) or (key.endswith(BIAS) and not config.lora_bias):
                raise RefusedAdapter(
                    f"A served LoRA is the pair lora_A and lora_B of linear layers, but {directory / WEIGHTS} also holds {key}, "
                    f"which would not act. {_CONVERT}"
                )
            if key.endswith(BIAS):
                continue
            partner = key.replace("lora_A", "lora_B") if "lora_A" in key else key.replace("lora_B", "lora_A")
            rank = tensor.shape[0] if "lora_A" in key else tensor.shape[-1]
            if partner not in tensors or rank != config.r:
                raise DamagedAdapter(
                    f"Every A of a LoRA has its B, both of rank {config.r}, but {key} in {directory} has rank {rank}"
                    f"{'' if partner in tensors else ' and no partner'}. Save or download the adapter again."
                )
        paths = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
        biased = {key.removesuffix(BIAS) for key in tensors if key.endswith(BIAS)}
        if biased != (paths if config.lora_bias else set()):
            raise DamagedAdapter(
                f"With lora_bias every B of a LoRA has a bias, but {directory} has {len(biased)} for {len(paths)} layers. Save "
                "or download the adapter again."
            )
        left_out = [path for path in sorted(paths) if is_named(path.removeprefix(PREFIX), config.exclude_modules or ())]
        if left_out:
            raise RefusedAdapter(
                f"PEFT applies no weights of modules in exclude_modules, but {directory} has some of {left_out[0]}. {_CONVERT}"
            )
        # Rank-stabilised LoRA divides alpha by the root of the rank: the same layer as one of a larger alpha.
        try:
            exact = config.lora_alpha * math.sqrt(config.r) if config.use_rslora else config.lora_alpha
            alpha = round(exact) or 1
            spec = LoRASpec(rank=config.r, alpha=alpha, dropout=config.lora_dropout)
        except (TypeError, ValueError, OverflowError) as error:
            given = f"r={config.r!r:.40}, lora_alpha={config.lora_alpha!r:.40}, lora_dropout={config.lora_dropout!r:.40}"
            raise DamagedAdapter(
                f"A LoRA has a rank and an alpha above 0 and a dropout in [0, 1), but {directory / CONFIG} says {given}. Save or "
                "download the adapter again."
            ) from error
        return cls(spec, exact / alpha, tensors)

    def config(self, backbone: Backbone) -> LoraConfig:
        init: Any = True if self.spec.init in ("default", "null_space") else self.spec.init
        return LoraConfig(
            r=self.spec.rank,
            lora_alpha=self.spec.alpha * self.scale,
            lora_dropout=self.spec.dropout,
            target_modules=self.target_paths(backbone),
            init_lora_weights=init,
            lora_bias=self.has_bias,
            task_type="CAUSAL_LM",
        )

    @property
    def has_bias(self) -> bool:
        """Whether its B layers have biases: a steering vector in PEFT's form is nothing else."""
        return any(key.endswith(BIAS) for key in self._tensors or ())

    def target_paths(self, backbone: Backbone) -> list[str]:
        if self._tensors is not None:
            return sorted({key.removeprefix(PREFIX).removesuffix(".lora_A.weight") for key in self._tensors if "lora_A" in key})
        low, high = layers_by_band(len(backbone.layers))[self.spec.band]
        wanted = {"attention": _ATTENTION, "mlp": _MLP, "all-linear": None}[self.spec.target_modules]
        chosen = {
            id(module) for layer in list(backbone.layers)[low:high] for module in layer.modules() if isinstance(module, nn.Linear)
        }
        paths = [
            path
            for path, module in backbone.model.named_modules()
            if id(module) in chosen and (wanted is None or path.rsplit(".", 1)[-1] in wanted)
        ]
        if not paths:
            raise RefusedAdapter(
                f"target_modules={self.spec.target_modules!r} matches no linear layer of {backbone.name!r}. Use 'all-linear'."
            )
        return paths

    def _live_tensors(self) -> dict[str, Tensor]:
        assert self._live is not None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Adapter .* invalid shape")  # PEFT takes a bias for a shard of a weight
            return {key: tensor.detach().clone() for key, tensor in get_peft_model_state_dict(self._live).items()}


def layers_by_band(num_layers: int) -> dict[str, tuple[int, int]]:
    """The first layer of each band, and the end: all layers, or a third of them, which is empty where there are too few."""
    low, high = num_layers // 3, 2 * num_layers // 3
    return {"all": (0, num_layers), "lower": (0, low), "middle": (low, high), "upper": (high, num_layers)}


def is_named(path: str, names: Collection[str]) -> bool:
    """Whether a module is one of those that a list in PEFT's config names: by its whole path, or by the end of it."""
    return any(path == one or path.endswith(f".{one}") for one in names)


def _refuse_more_than_lora(directory: Path) -> None:
    """RefusedAdapter for a setting that the engine would drop; one that this PEFT does not know counts unless it is empty."""
    plain, given = LoraConfig(), json.loads((directory / CONFIG).read_text())
    if isinstance(given.get("exclude_modules"), str):
        raise RefusedAdapter(f"exclude_modules is a list of names here, but {directory} has a pattern. {_CONVERT}")
    for name, value in given.items():
        if name not in _PLAIN and value and value != getattr(plain, name, None):
            raise RefusedAdapter(
                f"A served LoRA has one rank, one alpha and no further parts, but {directory} sets {name}={value!r}. {_CONVERT}"
            )


def detach(model: nn.Module, modules_before: dict[str, nn.Module]) -> None:
    """Puts every original module back in its place, and removes what PEFT hung onto the model."""
    for path, module in modules_before.items():
        if path:
            parent_path, _, child = path.rpartition(".")
            parent = modules_before[parent_path]
            if getattr(parent, child, None) is not module:
                setattr(parent, child, module)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        model.__dict__.pop(name, None)
    model.requires_grad_(False)
    model.eval()


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, attached LoRA layers and steering vectors are passed over: the backbone computes alone."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer) and not module.disable_adapters]
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    shifts = [hook for hook in hooks if isinstance(hook, ResidualShift) and not hook.is_off]
    for layer in layers:
        layer.enable_adapters(False)
    for shift in shifts:
        shift.is_off = True
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for shift in shifts:
            shift.is_off = False


if TYPE_CHECKING:
    _: Adapter = LoRA(LoRASpec())
