"""Compression: a steering vector from the backbone's own long chains and shorter ones, nothing else trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from adapters.backbone import Backbone
from adapters.ces import CESSpec
from adapters.spec import Choices, Range
from adapters.steering import Layer, Steering
from engine.engine import Engine
from engine.torch_engine import TorchEngine
from evaluation.compression import LAYERS, CompressionSpec, OnProgress, compress
from evaluation.pairs import MAX_NEW_TOKENS, Concise, Pairs, Verbose, make_pairs, read_pairs
from evaluation.refusals import PROMPTS, read_prompts
from evaluation.task import Example, Task
from tuning.errors import BadRecipe
from tuning.methods.method import Fit, Given, Method, MethodSpec


class CompressionMethodSpec(MethodSpec):
    """`steps`, `batch_size` and `rate` are of a trained vector (ces). `pairs` is a file of them; without one the rows make them.

    `layers` are tried in turn; a share in (0, 1) is of the depth. `refusal_prompts` is a file with one a line.
    """

    name: Literal["compression"] = "compression"
    num_examples: int = 48
    steps: Annotated[int, Range(10, 60, log=True)] = 25
    batch_size: Annotated[int, Choices((8, 16, 32))] = 8
    eps: Annotated[float, Range(3e-3, 0.1, log=True), Field(gt=0)] = 0.03
    vector: Annotated[Literal["diffmean", "ces"], Choices(("diffmean", "ces"))] = "diffmean"
    pooling: Annotated[Literal["last", "mean_cot"], Choices(("last", "mean_cot"))] = "mean_cot"
    layers: tuple[Layer, ...] = Field(default=LAYERS, min_length=1)
    rate: Annotated[float, Range(0.01, 0.2, log=True), Field(gt=0)] = 0.04
    kl_weight: float = Field(default=20.0, ge=0)
    verbose: Verbose = "own"
    concise: Concise = "gold"
    items: int = Field(default=24, ge=8)
    max_new_tokens: int = Field(default=MAX_NEW_TOKENS, ge=1)
    tolerance: float = Field(default=0.05, ge=0)
    pairs: str | None = None
    refusal_prompts: str | None = None

    @property
    def compression(self) -> CompressionSpec:
        return CompressionSpec(
            eps=self.eps,
            layers=self.layers,
            method=self.vector,
            pooling=self.pooling,
            ces=CESSpec(
                steps=self.steps,
                rate=self.rate,
                eps=self.eps,
                weight=self.kl_weight,
                batch_size=self.batch_size,
                seed=self.seed,
            ),
            items=self.items,
            max_new_tokens=self.max_new_tokens,
            tolerance=self.tolerance,
        )


@dataclass(frozen=True)
class Compression(Method):
    spec: CompressionMethodSpec
    spec_type = CompressionMethodSpec
    kinds: ClassVar[frozenset[str]] = frozenset({"steering"})

    def fitted(self, given: Given) -> Fit:
        """A layer of the sweep is a step. The engine that writes the chains is made for the call."""
        (steering,), backbone, task = given.adapters, given.backbone, given.task
        if not isinstance(steering, Steering) or task is None:
            raise BadRecipe("A compression is fitted as one steering vector on a task, but there is none. Set adapter.kind.")
        started, engine = time.monotonic(), TorchEngine(backbone, max_rows=64)

        def told(what: str, done: int, of: int) -> None:
            if given.on_step is not None and done:
                given.on_step(done, of, 0.0)

        try:
            made = self.compressed(engine, backbone, self.pairs(engine, backbone, task, given.examples), task, told)
            stats = engine.stats()
        finally:
            engine.close()
        steering.become(made)
        assert made.record is not None
        kl, written = (made.record.kl,), sum(stats.generated_tokens.values())
        return Fit({"loss": kl, "kl": kl}, stats.forward_tokens, time.monotonic() - started, written)

    def pairs(self, engine: Engine, backbone: Backbone, task: Task, examples: Sequence[Example]) -> Pairs:
        """Those of the file, or made from the rows."""
        spec = self.spec
        if spec.pairs is not None:
            return read_pairs(Path(spec.pairs))
        return make_pairs(engine, backbone, task, examples, spec.verbose, spec.concise, spec.max_new_tokens)

    def compressed(self, engine: Engine, backbone: Backbone, pairs: Pairs, task: Task, on_progress: OnProgress) -> Steering:
        asked = self.spec.refusal_prompts
        prompts = PROMPTS if asked is None else read_prompts(Path(asked))
        return compress(engine, backbone, pairs, task, self.spec.compression, prompts, on_progress)
