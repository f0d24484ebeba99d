"""What serving many adapters costs, part by part.

    python -m benchmarks.serving PART [--full] [--threads 2] [--smoke]

`mix`      a step of 16 rows under 8 different adapters, one adapter and none, and PEFT's `adapter_names` with the 8
`loaded`   the same, the reading of short prompts with it, while 1 to 256 adapters are loaded, of which each round draws
`context`  the same step behind prompts of 17 to 513 tokens

All arms of a part run in turn, round after round, each engine in a process of its own; what is compared is the ratio within a
round, by the clock and by the seconds of processor time that the process took (which other work on the machine moves less, but
OpenMP's waiting counts too). One line a round in runs/benchmarks/serving.jsonl; a round that is there is not run again. Each part
writes its own section of docs/results.md. Default: 12 rounds of a part; --full: 40.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from adapters.backbone import REASONER, Backbone
from adapters.lora import LoRA, LoRASpec
from adapters.whole_file import written_whole
from benchmarks.apart import Apart, Arm, Make, Work
from benchmarks.ratios import told_ratio
from benchmarks.results import RESULTS, commit, commits, provenance, run_kind, table, write_section
from engine.bank import BankLimits
from engine.engine import GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from tuning.journal import Journal

ROWS, DIFFERENT, RANK = 16, 8, 16
ROUNDS, FULL_ROUNDS = 12, 40
NONE, ONE, EIGHT, PEFT = "no adapter", "one adapter", f"{DIFFERENT} adapters", f"PEFT, {DIFFERENT} adapters"


class Size(NamedTuple):
    """Prompts are one token longer than whole blocks of what the engine keeps: a round reads that token and writes the rest."""

    tokens: int = 16  # written by every row
    prompt: int = 33
    loaded: tuple[int, ...] = (1, 8, 64, 256)
    contexts: tuple[int, ...] = (17, 65, 257, 513)


SMOKE = Size(2, 17, (1, 8), (17, 33))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--backbone", default=REASONER)
    parser.add_argument("--full", action="store_true", help=f"{FULL_ROUNDS} rounds")
    parser.add_argument("--rounds", type=int, help=f"[default: {ROUNDS}]")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=Path, default=Path("runs/benchmarks/serving.jsonl"))
    parser.add_argument("--smoke", action="store_true", help="A little of everything, and nothing into docs/results.md.")
    parser.add_argument("--note", default="", help="What else is to be known of the run, such as other work on the machine.")
    args = parser.parse_args()
    size = SMOKE if args.smoke else Size()
    backbone = Backbone.load(args.backbone)
    cell = [args.part, backbone.fingerprint[:12], args.threads, "apart", *size]
    count = 1 if args.smoke else args.rounds or (FULL_ROUNDS if args.full else ROUNDS)
    rounds = measured(args.rows, cell, lambda: Apart.all_of(PARTS[args.part](size), args.backbone, args.threads), count)
    section = TOLD[args.part](rounds, size)
    print(section.body)
    if not args.smoke:
        body = section.body if section.picture is None else f"![]({draw(section.picture)})\n\n{section.body}"
        about = f"{backbone.name} in bfloat16, LoRA of rank {RANK} on all linear layers, {ROWS} rows that write"
        about += f" {size.tokens} tokens each; {len(rounds)} rounds of commit {commits(kept(args.rows, cell)[:count])},"
        about += f" {args.threads} threads. {args.note}"
        title = f"{section.title} ({run_kind(args.rounds, full=args.full)})"
        write_section(f"serving_{args.part}", title, f"{provenance('serving')}\n\n{about.strip()}\n\n{body}")


class Taken(NamedTuple):
    """Seconds that an arm took in a round."""

    wall: float
    cpu: float


Round = Mapping[str, Taken]


class Picture(NamedTuple):
    name: str
    along: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


class Section(NamedTuple):
    title: str
    body: str
    picture: Picture | None = None


def measured(
    file: Path, cell: Sequence[object], arms_of: Callable[[], AbstractContextManager[Mapping[str, Arm]]], count: int
) -> list[Round]:
    """So many rounds of this cell, those that are in the file and as many more as are missing."""
    done = [row["arms"] for row in kept(file, cell)]
    with arms_of() if len(done) < count else nullcontext({}) as arms:
        for arm in arms.values():
            arm(-1)  # to warm up
        for number in range(len(done), count):
            order = list(arms)
            random.Random(number).shuffle(order)
            taken = {name: arms[name](number) for name in order}
            Journal(file).append({"cell": cell, "arms": taken, "commit": commit()})
            done.append(taken)
            print(number, {name: tuple(round(value, 1) for value in reading) for name, reading in taken.items()}, flush=True)
    return [{name: Taken(*values) for name, values in row.items()} for row in done[:count]]


def kept(file: Path, cell: Sequence[object]) -> list[dict[str, Any]]:
    """The rows of this cell that are in the file."""
    key = json.loads(json.dumps(cell))
    return [row for row in Journal(file).entries() if row["cell"] == key]


def ratio(rounds: Sequence[Round], one: str, other: str, by: str = "cpu") -> str:
    """How fast `one` is beside `other`: the mean of the rounds' ratios of time, geometric, with its 95 % interval."""
    return told_ratio([float(getattr(row[other], by) / getattr(row[one], by)) for row in rounds])


def median_ms(rounds: Sequence[Round], arm: str, by: str, steps: int) -> float:
    return 1000 * median(float(getattr(row[arm], by)) for row in rounds) / steps


# -- what is run


def adapters(backbone: Backbone, count: int) -> list[LoRA]:
    """Of random weights, none of them zero."""
    made = []
    for seed in range(count):
        lora, generator = LoRA(LoRASpec(rank=RANK, alpha=RANK, seed=seed)), torch.Generator().manual_seed(seed)
        with lora.attach(backbone), torch.no_grad():
            for parameter in lora.parameters():
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
        made.append(lora)
    return made


class Bench:
    """An engine whose prompts are read before: what is timed are steps that write."""

    def __init__(self, backbone: Backbone, size: Size, loaded: int = DIFFERENT, made: Sequence[LoRA] | None = None) -> None:
        limits = BankLimits(loaded_bytes=2**33)
        self.engine = TorchEngine(backbone, max_rows=ROWS, precision="bfloat16", max_prefix_tokens=2**17, bank=limits)
        self.size = size
        made = adapters(backbone, DIFFERENT) if made is None else made
        for number in range(loaded):
            self.engine.load(str(number), Profile((made[number % len(made)],)))
        self.loaded = loaded
        asyncio.run(self._start(backbone))

    async def _start(self, backbone: Backbone) -> None:
        """From the first stream on the engine keeps what it has read of prompts."""
        async for _ in self.engine.generate(GenerationRequest(backbone.chat_ids("Hello"), max_new_tokens=1)):
            pass

    def write(self, names: Sequence[str | None], salt: str = "") -> None:
        """Each row after a prompt of its own, which a new salt has read again."""
        prompts = [tuple(100 + row + place for place in range(self.size.prompt)) for row in range(len(names))]
        self._write(prompts, names, salt)

    def write_after(self, length: int, names: Sequence[str | None]) -> None:
        """All rows after one prompt, which rows under the same adapter read once."""
        self._write([tuple(100 + place % 500 for place in range(length))] * len(names), names)

    def _write(self, prompts: Sequence[tuple[int, ...]], names: Sequence[str | None], salt: str = "") -> None:
        pairs, count = zip(prompts, names, strict=True), self.size.tokens
        self.engine.complete([GenerationRequest(ids, name, count, ignore_end=True, cache_salt=salt) for ids, name in pairs])


def mixed(count: int) -> list[str]:
    return [str(row % count) for row in range(ROWS)]


def mix(size: Size) -> list[Make]:
    return [partial(ours, size), partial(peft, size)]


def ours(size: Size, backbone: Backbone) -> dict[str, Work]:
    bench = Bench(backbone, size, made=adapters(backbone, DIFFERENT))
    return {
        NONE: lambda _: bench.write([None] * ROWS),
        ONE: lambda _: bench.write(mixed(1)),
        EIGHT: lambda _: bench.write(mixed(DIFFERENT)),
    }


def peft(size: Size, backbone: Backbone) -> dict[str, Work]:
    """A static batch through PEFT's own mixed path, its weights in bfloat16 too, behind prompts of one token."""
    import copy
    import tempfile

    from peft import PeftModel

    made, model = adapters(backbone, DIFFERENT), None
    with tempfile.TemporaryDirectory() as folder:
        for number, lora in enumerate(made):
            place = Path(folder, str(number))
            place.mkdir()
            lora.save(place)
            if model is None:
                model = PeftModel.from_pretrained(copy.deepcopy(backbone.model), place, adapter_name="0")
            else:
                model.load_adapter(place, adapter_name=str(number))
    assert model is not None
    low, ids_BT = model.to(torch.bfloat16).eval(), torch.full((ROWS, 1), 100)

    def run(_: int) -> None:
        with torch.inference_mode():
            low.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                adapter_names=mixed(DIFFERENT),
                max_new_tokens=size.tokens,
                min_new_tokens=size.tokens,
                do_sample=False,
                pad_token_id=0,
            )

    return {PEFT: run}


def loaded(size: Size) -> list[Make]:
    return [partial(of_loaded, size, count) for count in size.loaded]


def of_loaded(size: Size, count: int, backbone: Backbone) -> dict[str, Work]:
    """Which of the loaded ones a batch is of is drawn for every round: those that were drawn long ago have left the bank."""
    bench = Bench(backbone, size, count)

    def work(different: int) -> Work:
        def run(number: int) -> None:
            drawn = random.Random(f"{count}/{number}").sample(range(count), different)
            # Prompts are read in every round and arm alike: what was drawn before would else find its own.
            bench.write([str(drawn[row % different]) for row in range(ROWS)], salt=f"{different}/{number}")

        return run

    return {f"{different} of {count}": work(different) for different in (1, DIFFERENT) if different <= count}


def context(size: Size) -> list[Make]:
    return [partial(of_context, size)]


def of_context(size: Size, backbone: Backbone) -> dict[str, Work]:
    bench = Bench(backbone, size)
    names: dict[str, Sequence[str | None]] = {NONE: [None] * ROWS, ONE: mixed(1), EIGHT: mixed(DIFFERENT)}

    def work(length: int, rows: Sequence[str | None]) -> Work:
        return lambda _: bench.write_after(length, rows)

    return {f"{name} @ {length}": work(length, rows) for length in size.contexts for name, rows in names.items()}


# -- what is told


def told_mix(rounds: Sequence[Round], size: Size) -> Section:
    rows = []
    for arm in (NONE, ONE, EIGHT, PEFT):
        times = [f"{median_ms(rounds, arm, by, size.tokens):.0f}" for by in ("wall", "cpu")]
        beside = [ratio(rounds, arm, other, by) if arm != other else "1" for other in (ONE, NONE) for by in ("cpu", "wall")]
        rows.append([arm, *times, *beside])
    headings = ["rows are under", "ms a step", "processor ms a step"]
    headings += [f"speed beside {other}, {by}" for other in (ONE, NONE) for by in ("processor", "clock")]
    said = f"Medians over the rounds; ratios with their 95 % interval. A round of ours finds all but one of the {size.prompt}"
    said += " tokens of its prompts kept, and PEFT's prompts are that one token alone. Ours and PEFT have processes of their own."
    return Section("Mixed batches", f"{said}\n\n{table(headings, rows)}")


def told_loaded(rounds: Sequence[Round], size: Size) -> Section:
    first = f"1 of {size.loaded[0]}"
    arms = list(rounds[0])
    rows = [
        [*arm.split(" of "), f"{median_ms(rounds, arm, 'cpu', size.tokens):.0f}", ratio(rounds, arm, first)]
        for arm in sorted(arms, key=lambda arm: [int(part) for part in arm.split(" of ")])
    ]
    lines = {
        f"{different} in the batch": [
            (count, median_ms(rounds, f"{different} of {count}", "cpu", size.tokens))
            for count in size.loaded
            if f"{different} of {count}" in arms
        ]
        for different in (1, DIFFERENT)
    }
    said = "Medians over the rounds; ratios of the processor's time with their 95 % interval. Each round reads its prompts,"
    said += f" {ROWS} x {size.prompt} tokens: that is in the time a step."
    body = f"{said}\n\n{table(['different in the batch', 'loaded', 'processor ms a step', f'speed beside {first}'], rows)}"
    return Section("Cost against the number of loaded adapters", body, Picture("serving_loaded.png", "adapters loaded", lines))


def told_context(rounds: Sequence[Round], size: Size) -> Section:
    rows = []
    for length in size.contexts:
        times = [f"{median_ms(rounds, f'{arm} @ {length}', 'cpu', size.tokens):.0f}" for arm in (NONE, ONE, EIGHT)]
        beside = [ratio(rounds, f"{EIGHT} @ {length}", f"{other} @ {length}") for other in (ONE, NONE)]
        rows.append([str(length), *times, *beside])
    lines = {
        arm: [(length, median_ms(rounds, f"{arm} @ {length}", "cpu", size.tokens)) for length in size.contexts]
        for arm in (NONE, ONE, EIGHT)
    }
    headings = ["tokens of the prompt", *(f"{arm}, processor ms a step" for arm in (NONE, ONE, EIGHT))]
    headings += [f"speed of {EIGHT} beside {other}" for other in (ONE, NONE)]
    picture = Picture("serving_context.png", "tokens of the prompt", lines)
    said = "Medians over the rounds; ratios of the processor's time with their 95 % interval. All prompts but a token are kept."
    return Section("Cost against the context length", f"{said}\n\n{table(headings, rows)}", picture)


def draw(picture: Picture) -> str:
    """Beside the results; its name there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, points in picture.lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xlabel=picture.along, ylabel="processor ms a step of 16 rows", xscale="log", ylim=(0, None))
    ticks = sorted({place for points in picture.lines.values() for place, _ in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend()
    with written_whole(RESULTS.parent / picture.name) as part:
        figure.savefig(part, format="png", dpi=90)
    return picture.name


PARTS: dict[str, Callable[[Size], list[Make]]] = {"mix": mix, "loaded": loaded, "context": context}
TOLD: dict[str, Callable[[Sequence[Round], Size], Section]] = {
    "mix": told_mix,
    "loaded": told_loaded,
    "context": told_context,
}

if __name__ == "__main__":
    main()
