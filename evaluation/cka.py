"""Centred kernel alignment of each layer's states under two prompts: a picture, and never a score.

Linear CKA (Kornblith et al. 2019, arXiv 1905.00414) is |Y'X|^2 / (|X'X| |Y'Y|) of centred states; with few items for the width it
is high whatever the states are, so that the unbiased estimator of HSIC (Song et al. 2012; Nguyen et al. 2021, arXiv 2010.15327)
is what the picture uses. Two prompts that end in other tokens must part in the upper layers, since those hold the next token:
the curve of two wordings of one prompt shows how much of a fall means nothing. Every state is that of the prompt's last token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.whole_file import written_whole
from engine.engine import Continuation, Engine
from engine.inspect import NOT_HERE, Inspector, inspector
from evaluation.task import Example, direct_prompt, question_text, reasoning_prompt

# Legend: N items, D width, L layers

DIRECT_AGAIN = "Write nothing but the answer, on a single line that begins with Answer:"  # says what evaluation.task.DIRECT says


def unbiased_cka(x_ND: Tensor, y_ND: Tensor) -> float:
    """About 0 for states that have nothing to do with each other, whatever the number of items; may come out below 0."""
    if x_ND.shape[0] < 4:
        raise ValueError(f"The unbiased estimator of HSIC needs at least 4 items, but got {x_ND.shape[0]}. Take more.")
    x_NN, y_NN = (_without_diagonal(states_ND.double() @ states_ND.double().T) for states_ND in (x_ND, y_ND))
    own = _hsic(x_NN, x_NN) * _hsic(y_NN, y_NN)
    return _hsic(x_NN, y_NN) / math.sqrt(own) if own > 0 else math.nan  # an estimate of a norm may fall below 0


@dataclass(frozen=True)
class Curve:
    """CKA by layer, lowest first."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class CkaCurves:
    """Reasoned against direct prompts, and the control of two direct prompts, under the backbone and under the profile."""

    curves: tuple[Curve, ...]
    num_items: int
    not_measurable: str = ""


def cka_curves(engine: Engine, backbone: Backbone, profile: str, examples: Sequence[Example]) -> CkaCurves:
    inside = inspector(engine)
    if inside is None:
        return CkaCurves((), len(examples), NOT_HERE)
    curves = []
    for name, shown in ((None, "backbone"), (profile, "adapter")):
        slow, fast, again = (
            _last_states(inside, backbone, name, texts)
            for texts in (
                [reasoning_prompt(example) for example in examples],
                [direct_prompt(example) for example in examples],
                [f"{question_text(example)}\n{DIRECT_AGAIN}" for example in examples],
            )
        )
        pairs = ((f"{shown}: reasoned and direct prompt", slow), (f"{shown}: two direct prompts (control)", again))
        curves += [Curve(title, tuple(map(unbiased_cka, other, fast))) for title, other in pairs]
    return CkaCurves(tuple(curves), len(examples))


def draw(found: CkaCurves, file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="layer", ylabel="CKA (unbiased HSIC)", ylim=(-0.05, 1.05))
    for place, curve in enumerate(found.curves):
        style = "--" if place % 2 else "-"
        axes.plot(range(len(curve.values)), curve.values, style, color=f"C{place // 2}", label=curve.name)
    axes.set_title(f"States of the prompt's last token, {found.num_items} items", fontsize=10)
    axes.legend(fontsize=8)
    with written_whole(file) as part:
        figure.savefig(part, format="png", dpi=150)


def _last_states(inside: Inspector, backbone: Backbone, profile: str | None, texts: Sequence[str]) -> list[Tensor]:
    """One [N, D] a layer."""
    asked = [Continuation(backbone.chat_ids(text), ()) for text in texts]
    states = inside.hidden_states(asked, [profile] * len(asked), range(len(backbone.layers)))
    return list(torch.stack([states_LPD[:, 0] for states_LPD in states], dim=1))


def _without_diagonal(kernel_NN: Tensor) -> Tensor:
    return kernel_NN - torch.diag(kernel_NN.diagonal())


def _hsic(x_NN: Tensor, y_NN: Tensor) -> float:
    """Of kernels without their diagonals."""
    count = len(x_NN)
    whole = float(x_NN.sum() * y_NN.sum()) / ((count - 1) * (count - 2))
    crossed = float(x_NN.sum(dim=0) @ y_NN.sum(dim=0)) * 2 / (count - 2)
    return (float((x_NN * y_NN).sum()) + whole - crossed) / (count * (count - 3))
