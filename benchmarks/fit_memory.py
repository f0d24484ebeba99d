"""Peak resident memory and speed of a fit: with gradient checkpointing and without, on the backbone in its dtype and in 4 bits.

    python -m benchmarks.fit_memory [--steps 3]

A few minutes on two cores; each fit has a process of its own. In 4 bits the weights are read whole first: a peak of loading.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results import provenance, table, write_section

WAYS: dict[str, dict[str, object]] = {
    "as usual": {},
    "gradient checkpointing": {"fit.gradient_checkpointing": True},
    "4 bits": {"backbone_format": "nf4"},
    "4 bits, gradient checkpointing": {"backbone_format": "nf4", "fit.gradient_checkpointing": True},
}


def fitted(way: str, recipe_file: Path, steps: int, tokens: int) -> None:
    """In this process, which ends with it."""
    from tuning.fitting import fit_recipe
    from tuning.isolation import use_threads
    from tuning.recipe import Recipe
    from tuning.trial import peak_memory_mib

    use_threads()
    values = {"adapter.kind": "lora", "method.target": "rationale", "method.batch_size": 32, "method.steps": steps}
    recipe = Recipe.load(recipe_file).with_values({**values, "method.micro_batch_tokens": tokens, **WAYS[way]})
    with tempfile.TemporaryDirectory() as place:
        fit = fit_recipe(recipe, Path(place) / "adapter")
    print(json.dumps({"peak_mib": peak_memory_mib(), "tokens_per_s": fit.tokens_per_s, "loss": fit.losses[-1]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4096, help="Of a micro-batch.")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--way", choices=WAYS, help="Only this one, in this process, as JSON.")
    args = parser.parse_args()
    if args.way:
        return fitted(args.way, args.recipe, args.steps, args.tokens)
    rows = []
    for way in WAYS:
        own = ["--way", way, "--steps", str(args.steps), "--tokens", str(args.tokens), "--recipe", str(args.recipe)]
        done = subprocess.run([sys.executable, "-m", "benchmarks.fit_memory", *own], capture_output=True, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        rows.append([way, f"{told['peak_mib'] / 1024:.2f}", f"{told['tokens_per_s']:.0f}", f"{told['loss']:.4f}"])
        print(*rows[-1], flush=True)
    text = table(["fit", "peak resident memory, GiB", "tokens/s", "loss after the last step"], rows)
    text += f"\n\nA LoRA, rationales, batches of 32, {args.tokens} tokens a micro-batch, {args.steps} steps."
    write_section("fit_memory", "Peak memory of a fit", f"{provenance('fit_memory')}\n\n{text}")


if __name__ == "__main__":
    main()
