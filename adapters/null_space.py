"""A LoRA that starts where a retention set has least: its A spans the least used directions of each layer's input, its B is 0.

After LoRA-Null (Tang et al. 2025, arXiv 2503.02659), which takes the projection of the frozen weight onto the null space for the
start and then rewrites that weight. Here the frozen weight stays as it is: A is the last eigenvectors of the inputs' covariance.
With A frozen too (`freeze_a`, the paper's second variant), whatever is fitted leaves the retention set's own inputs nearly alone;
with A trained it may drift out of the null space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.lora import PREFIX, LoRA, LoRASpec, adapters_off

# Legend: T tokens, R rank, I inputs and O outputs of a module


def null_space_start(backbone: Backbone, spec: LoRASpec, texts: Sequence[Sequence[int]]) -> LoRA:
    """The LoRA before its fit; `texts` are token ids of what is to be retained, each read whole."""
    if not texts:
        raise RefusedAdapter("A null space is that of a retention set's inputs, but the set is empty. Protect a family or more.")
    paths, tensors = LoRA(spec).target_paths(backbone), dict[str, Tensor]()
    covariances = input_covariances(backbone, paths, texts)
    bases: dict[int, Tensor] = {}
    for path in paths:
        covariance_II = covariances[path]
        module = backbone.model.get_submodule(path)
        assert isinstance(module, nn.Linear)
        if spec.rank > module.in_features:
            raise RefusedAdapter(
                f"A null space has no more directions than its module has inputs, but rank is {spec.rank} and {path} has "
                f"{module.in_features}. Lower the rank."
            )
        if id(covariance_II) not in bases:
            # Ascending: the first eigenvectors are those that the retention set uses least.
            bases[id(covariance_II)] = torch.linalg.eigh(covariance_II.double()).eigenvectors[:, : spec.rank].T.float()
        tensors[f"{PREFIX}{path}.lora_A.weight"] = bases[id(covariance_II)].contiguous().clone()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.zeros(module.out_features, spec.rank)
    return LoRA(spec, tensors=tensors)


@torch.no_grad()
def input_covariances(backbone: Backbone, paths: Sequence[str], texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Sum of x x^T over all tokens, [I, I], by module path; modules that read the same tensor share one object."""
    found: dict[str, Tensor] = {}
    last: list[tuple[Tensor, str]] = []

    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if last and last[0][0] is inputs[0]:
                found.setdefault(path, found[last[0][1]])
                return
            x_TI = inputs[0].flatten(0, -2).float()
            if path not in found:
                found[path] = x_TI.new_zeros(x_TI.shape[-1], x_TI.shape[-1])
            found[path].addmm_(x_TI.T, x_TI)
            last[:] = [(inputs[0], path)]

        return add

    hooks = [backbone.model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in paths]
    try:
        with adapters_off(backbone.model):
            for ids in texts:
                backbone.decoder(input_ids=torch.tensor([list(ids)], device=backbone.device), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return _moved(found)


def _moved(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, with what was one object still one."""
    moved = {id(covariance_II): covariance_II.cpu() for covariance_II in found.values()}
    return {path: moved[id(covariance_II)] for path, covariance_II in found.items()}
