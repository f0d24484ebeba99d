"""What every training method offers: a spec with its search ranges, the adapter kinds it trains, and one `fit`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import model_validator

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.spec import Choices, Range, Spec
from evaluation.errors import DataError
from evaluation.task import Example, Task
from tuning.batches import Row
from tuning.errors import BadRecipe
from tuning.loop import OnStep, OnUpdate
from tuning.processes import Processes
from tuning.rollouts import own_words


class MethodSpec(Spec):
    """What every method is told. A field that two methods search under one name has the same options in both."""

    written_first: ClassVar[tuple[str, ...]] = ("num_examples",)  # fields that bound what is written before the first step

    name: str
    learning_rate: Annotated[float, Range(5e-5, 1e-3, log=True)] = 5e-4
    steps: Annotated[int, Range(10, 60, log=True)] = 20
    batch_size: Annotated[int, Choices((8, 16, 32))] = 16
    weight_decay: Annotated[float, Range(0.0, 0.3)] = 0.0
    warmup: float = 0.1  # share of the steps in which the learning rate rises; it then falls linearly to a tenth
    micro_batch_tokens: int = 2048  # a batch is split so that no forward holds more
    num_examples: int = 2000
    listed_choices: int | None = None  # that a training prompt lists, the right one among them; None: as the task asks
    token_budget: int | None = None  # written and learnt together; the fit ends with the step that reaches it, if not before
    seed: int = 0

    @model_validator(mode="after")
    def _usable(self) -> MethodSpec:
        least = {
            "steps": 1,
            "batch_size": 1,
            "num_examples": 1,
            "micro_batch_tokens": 1,
            "weight_decay": 0,
            "warmup": 0,
            "seed": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, but got {getattr(self, name)}.")
        if self.token_budget is not None and self.token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, but got {self.token_budget}. Leave it out for none.")
        if self.listed_choices is not None and self.listed_choices < 2:
            raise ValueError(f"A prompt lists 2 choices or more, but got listed_choices = {self.listed_choices}. Take 4.")
        if not 0 < self.learning_rate < 1 or self.warmup > 1:
            raise ValueError(
                f"A fit needs 0 < learning_rate < 1 and warmup <= 1, but got {self.learning_rate:g} and {self.warmup:g}."
            )
        return self


@dataclass(frozen=True)
class Fit:
    """What a fit did. The adapters that it was given now hold the fitted weights."""

    # By name, one a step: loss (nats per learnt token), kl, parts of a reward; forward_kl at the steps of tuning.distance alone.
    numbers: Mapping[str, tuple[float, ...]]
    num_tokens: int  # that went through a forward and backward
    seconds: float  # of the steps
    num_generated: int = 0  # tokens that were written for it
    counts: Mapping[str, float] = field(default_factory=dict)  # seconds before the first step, rewrites kept and the like

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Fit:
        """From what was stored as JSON."""
        return cls(**{**told, "numbers": {name: tuple(values) for name, values in told["numbers"].items()}})

    @property
    def losses(self) -> tuple[float, ...]:
        return self.numbers["loss"]

    @property
    def kl(self) -> tuple[float, ...]:
        """KL to the backbone in nats per token; empty without a pull towards it.

        On rows that are given it is the forward one, KL(backbone || adapted); of what the adapted model wrote itself, the other.
        """
        return self.numbers.get("kl", ())

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "numbers": {name: list(values) for name, values in self.numbers.items()},
            "num_tokens": self.num_tokens,
            "num_generated": self.num_generated,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens_per_s,
            "counts": dict(self.counts),
        }


class Given(NamedTuple):
    """What a fit is given. What took long to make is kept in the directory, where there is one."""

    backbone: Backbone
    adapters: Sequence[Adapter]
    examples: Sequence[Example]
    task: Task | None = None
    directory: Path | None = None
    alive: Callable[[], None] | None = None  # called while rows are written: minutes, on a large backbone
    on_step: OnStep | None = None
    on_update: OnUpdate | None = None
    replay: Sequence[Row] = ()  # of the supervised methods
    num_written: int = 0  # tokens of the budget that the replay took

    def kept_in(self, purpose: str) -> Path | None:
        """Where what the backbone alone writes is kept, for a fit that keeps anything."""
        return own_words(self.backbone, purpose) if self.directory else None

    def only_alive(self) -> Given:
        """For a fit before the last one: its steps are signs of life, and its updates are not told."""

        def on_step(step: int, steps: int, loss: float) -> None:
            if self.alive:
                self.alive()

        return self._replace(on_step=on_step, on_update=None)


@dataclass(frozen=True)
class Method(ABC):
    """Entries of METHODS. `kinds` are those of the adapters that it can train; others are refused by name."""

    spec: MethodSpec
    spec_type: ClassVar[type[MethodSpec]]
    kinds: ClassVar[frozenset[str]] = frozenset({"lora", "softcot", "steering"})
    splits: ClassVar[bool] = False  # whether several processes can share its batches: nothing is written for them

    def fit(
        self,
        backbone: Backbone,
        adapters: Sequence[Adapter],
        examples: Sequence[Example],
        on_step: OnStep | None = None,
        on_update: OnUpdate | None = None,
        *,
        task: Task | None = None,
        directory: Path | None = None,
    ) -> Fit:
        """Fits the adapters in place. The backbone is the same, bit for bit, before and after.

        `task` is where the examples come from, for a method that must judge what it wrote. In `directory`, where given, the
        fit keeps what a killed one goes on from; the same call then ends as if it had never been killed.
        """
        self.check_processes(Processes.here().count)
        alive = (lambda: on_step(0, self.spec.steps, 0.0)) if on_step else None
        return self.fitted(Given(backbone, adapters, examples, task, directory, alive, on_step, on_update))

    @abstractmethod
    def fitted(self, given: Given) -> Fit:
        """How a method fits; `fit` is how it is called."""

    def check(self, examples: Sequence[Example], task: Task) -> None:  # noqa: B027  most have nothing to check
        """Raises DataError for what no fit of this spec could learn from; a sweep asks before its first trial."""

    def check_room(self, backbone: Backbone, examples: Sequence[Example]) -> None:  # noqa: B027  some ask when they prepare
        """Raises DataError for an example that leaves no room for what is written or learnt after it.

        A sweep asks before its first trial, of the least that it searches.
        """

    def required(self, task: Task | None) -> Task:
        """The task, for a method that cannot do without. DataError where its fit was given none."""
        if task is None:
            raise DataError(f"The method {self.spec.name!r} goes by the task's own check, but no task was given. Name it.")
        return task

    @classmethod
    def trains(cls, kind: str) -> bool:
        """Whether all kinds that are joined by + are of those that it can train."""
        return cls.kinds >= set(kind.split("+"))

    @classmethod
    def check_processes(cls, count: int) -> None:
        """Raises BadRecipe where so many processes are to share what one alone can fit."""
        if count > 1 and not cls.splits:
            name = cls.spec_type.model_fields["name"].default
            raise BadRecipe(
                f"The method {name!r} has text written for its fit, which runs in one process, but {count} were asked for. "
                "Launch one, without a config file of Accelerate, or take the method sft or softcot."
            )

    @classmethod
    def check_kind(cls, kind: str) -> None:
        """Raises BadRecipe for an adapter kind (or kinds, joined by +) that this method cannot train."""
        if not cls.trains(kind):
            name = cls.spec_type.model_fields["name"].default
            raise BadRecipe(
                f"The method {name!r} trains {', '.join(sorted(cls.kinds))}, but adapter.kind is {kind!r}. "
                "Take another kind or another method."
            )
