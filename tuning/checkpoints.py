"""Checkpoints of one fit, kept for its gradients: the adapters' parameters and what Adam knows of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from adapters.errors import DamagedAdapter
from adapters.whole_file import written_whole
from tuning.errors import BadRecipe
from tuning.loop import backward_of

LEAST = 2  # where a fit has ended, the gradients of what it learnt have vanished: one look is not enough


@dataclass(frozen=True)
class Checkpoint:
    """Of each parameter, in the adapters' own order: its value and Adam's second moment, both float32 on the CPU."""

    step: int  # updates so far; never 0, where B = 0 and with it every gradient of A
    learning_rate: float  # mean over the steps since the checkpoint before
    beta2: float
    parameters: tuple[Tensor, ...]
    second_moments: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(
                "A checkpoint is taken after the first update or later, but this one is from step 0: there B = 0, so that every "
                "gradient of A is exactly 0. Take a later one."
            )

    def save(self, file: Path) -> None:
        tensors = {f"{kind}.{index:05}": tensor for kind, index, tensor in self._named()}
        numbers = {"step": self.step, "learning_rate": self.learning_rate, "beta2": self.beta2}
        with written_whole(file) as part:
            save_file(tensors, part, metadata={name: repr(value) for name, value in numbers.items()})

    @classmethod
    def load(cls, file: Path) -> Checkpoint:
        with safe_open(file, framework="pt") as stored:
            numbers, names = stored.metadata(), sorted(stored.keys())
            kinds = [
                tuple(stored.get_tensor(name) for name in names if name.startswith(kind)) for kind in ("parameter.", "second.")
            ]
        return cls(int(numbers["step"]), float(numbers["learning_rate"]), float(numbers["beta2"]), *kinds)

    def _named(self) -> Iterator[tuple[str, int, Tensor]]:
        for kind, tensors in (("parameter", self.parameters), ("second", self.second_moments)):
            yield from ((kind, index, tensor) for index, tensor in enumerate(tensors))


class Recorder:
    """Watches a fit (`on_update`) and keeps its checkpoints.

    Moments are looked up by parameter, never by their place in a file, where another order goes unseen.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self.checkpoints: list[Checkpoint] = []
        self._wanted, self._rates = frozenset(steps), list[float]()

    def on_update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        (group,) = optimizer.param_groups
        self._rates.append(float(group["lr"]))
        if step not in self._wanted:
            return
        moments = [optimizer.state[p].get("exp_avg_sq", torch.zeros_like(p)) for p in group["params"]]
        mean_rate = sum(self._rates) / len(self._rates)
        self.checkpoints.append(Checkpoint(step, mean_rate, float(group["betas"][1]), _copies(group["params"]), _copies(moments)))
        self._rates.clear()


def checkpoint_steps(steps: int, count: int) -> tuple[int, ...]:
    """Evenly over the fit, its last step among them."""
    if not LEAST <= count <= steps:
        raise BadRecipe(
            f"Influence reads {LEAST} or more checkpoints of a fit, at most one a step, but got {count} for {steps} steps. "
            "Change --checkpoints or method.steps."
        )
    return tuple(round(steps * (index + 1) / count) for index in range(count))


@contextmanager
def restored(
    backbone: Backbone, adapters: Sequence[Adapter], checkpoint: Checkpoint
) -> Iterator[tuple[Stack, list[nn.Parameter]]]:
    """The fit as it was at the checkpoint: unfitted adapters of the same specs attached and filled, dropout off, gradients on."""
    stack = Stack(adapters)
    with backward_of(backbone), stack.attach(backbone):
        trained = [parameter for parameter in stack.parameters() if parameter.requires_grad]
        if [p.shape for p in trained] != [value.shape for value in checkpoint.parameters]:
            raise DamagedAdapter(
                f"A checkpoint fills the adapters that it was taken from, but it holds {len(checkpoint.parameters)} parameters "
                f"and these have {len(trained)}, or others. Attribute the recipe again, in another --home."
            )
        for parameter, value in zip(trained, checkpoint.parameters, strict=True):
            parameter.data.copy_(value)
        backbone.model.eval()  # attached layers are new, and new layers drop out
        yield stack, trained


def _copies(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().float().cpu().clone() for tensor in tensors)
