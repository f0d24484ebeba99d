"""Influence: planted rows come out where they must, signs mean what they say, and gradients are those of the adapter."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from scipy import stats

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.files import new_adapter
from adapters.lora import LoRASpec
from adapters.softcot import SoftCoTSpec
from evaluation.task import Example
from evaluation.tasks import TASKS
from tuning.batches import Row, collate, rows_of
from tuning.checkpoints import Checkpoint, Recorder, checkpoint_steps, restored
from tuning.distance import label_logits
from tuning.errors import BadRecipe
from tuning.gradients import CountSketch, Weighted, adam_direction, gradient
from tuning.influence import Influence, Pool, conflicts, influences, length_correlations, lens
from tuning.methods.sft import SFT, SFTSpec
from tuning.queries import DOMAIN, domain_query, family_query

LORA = LoRASpec(rank=4)
SPECS = {"lora": LORA, "softcot": SoftCoTSpec(num_thoughts=2, assistant_layers=1)}


def apple(number: int, colour: str = "red", mixed_up: bool = False) -> Example:
    words = f"Apple {number} lies in the sun and so it is {colour}".split()
    if mixed_up:
        random.Random(number).shuffle(words)
    return Example(str(number), f"Which colour has apple {number}?", colour, rationale=" ".join(words), group=str(number))


def fitted(backbone: Backbone, examples: Sequence[Example], kind: str = "lora", steps: int = 16) -> list[Checkpoint]:
    recorder = Recorder(checkpoint_steps(steps, 2))
    spec = SFTSpec(steps=steps, batch_size=8, learning_rate=1e-2, target="rationale")
    SFT(spec).fit(backbone, [new_adapter(SPECS[kind])], examples, on_update=recorder.on_update)
    return recorder.checkpoints


def scored(
    backbone: Backbone, examples: Sequence[Example], queries: Mapping[str, Sequence[Weighted]], kind: str = "lora"
) -> list[Influence]:
    pool = Pool([example.id for example in examples], rows_of(backbone, examples, "rationale"))
    checkpoints = fitted(backbone, examples, kind)
    cosines = {}
    for checkpoint in checkpoints:
        with lens(backbone, [new_adapter(SPECS[kind])], checkpoint, dims=2048) as view:
            asked = {name: view.query(losses) for name, losses in queries.items()}
            for row_id, row in zip(pool.ids, pool.rows, strict=True):
                cosines[checkpoint.step, row_id] = view.cosines(row, asked)
    return influences(pool, checkpoints, cosines)


def apple_queries(backbone: Backbone) -> dict[str, list[Weighted]]:
    held_out = [apple(number) for number in range(100, 150)]
    return {
        "apples": [Weighted(row) for row in rows_of(backbone, held_out, "rationale")],
        DOMAIN: domain_query(backbone, held_out),
    }


def alike(one: torch.Tensor, other: torch.Tensor, within: float = 0.03) -> bool:
    """But for rounding: a fit and its gradients are computed in bfloat16 where the processor is fast at it."""
    return float((one - other).norm() / other.norm()) < within


def area_under_curve(better: Sequence[float], worse: Sequence[float]) -> float:
    """The chance that a row of the first stands above one of the second."""
    return float(stats.mannwhitneyu(better, worse).statistic) / (len(better) * len(worse))


def test_rows_with_wrong_answers_come_out_worst(backbone: Backbone) -> None:
    examples = [apple(number, "blue" if number % 4 == 0 else "red") for number in range(32)]
    found = scored(backbone, examples, apple_queries(backbone))
    right = [one.families["apples"] for one in found if int(one.row) % 4]
    wrong = [one.families["apples"] for one in found if int(one.row) % 4 == 0]
    assert area_under_curve(right, wrong) > 0.95


def test_rows_with_a_mixed_up_rationale_come_out_worst(backbone: Backbone) -> None:
    examples = [apple(number, mixed_up=number % 4 == 0) for number in range(32)]
    found = scored(backbone, examples, apple_queries(backbone))
    right = [one.retention for one in found if int(one.row) % 4]
    mixed_up = [one.retention for one in found if int(one.row) % 4 == 0]
    assert area_under_curve(right, mixed_up) > 0.95


@pytest.mark.parametrize("kind", SPECS)
def test_the_twin_of_a_query_comes_out_best(backbone: Backbone, kind: str) -> None:
    families = ("arithmetic", "boxes", "ordering", "kinship")
    examples = [example for name in families for example in TASKS[name].examples("train", 3)]
    twin = examples[4]
    query = [Weighted(row) for row in rows_of(backbone, [twin], "rationale")]
    found = scored(backbone, examples, {"twin": query, DOMAIN: query}, kind)
    assert max(found, key=lambda one: one.retention).row == twin.id


def test_a_step_on_a_row_above_zero_lowers_the_loss_of_the_query_and_below_zero_raises_it(backbone: Backbone) -> None:
    examples = [apple(number, "blue" if number % 4 == 0 else "red") for number in range(16)]
    red_not_blue = rows_of(backbone, [apple(200, "red"), apple(200, "blue")], "rationale")
    query = [Weighted(row, sign) for row, sign in zip(red_not_blue, (1.0, -1.0), strict=True)]
    checkpoint = fitted(backbone, examples, steps=8)[0]

    def loss(stack: Stack) -> float:
        total = 0.0
        for asked in query:
            with torch.no_grad():
                logits_NV, labels_N = label_logits(backbone, collate(backbone, stack, [asked.row]))
            total += asked.weight * float(torch.nn.functional.cross_entropy(logits_NV.double(), labels_N))
        return total

    with lens(backbone, [new_adapter(LORA)], checkpoint, dims=4096) as view:
        asked = {"query": view.query(query)}
        before, changes = loss(view.stack), []
        for row in rows_of(backbone, examples, "rationale"):
            s = view.cosines(row, asked)["query"]
            added_P = adam_direction(gradient(backbone, view.stack, view.trained, [Weighted(row)]), checkpoint)
            for sign in (-1e-5, 1e-5):  # there and back
                parts = added_P.split([parameter.numel() for parameter in view.trained])
                for parameter, part in zip(view.trained, parts, strict=True):
                    parameter.data.add_(sign * part.view_as(parameter))
                if sign < 0:
                    changes.append((s, loss(view.stack) - before))
    clear = [(s, change) for s, change in changes if abs(s) > 0.04]  # beyond the error of a sketch
    assert {s > 0 for s, _ in clear} == {True, False}
    assert all((change < 0) == (s > 0) for s, change in clear)


def test_before_the_first_update_every_gradient_of_a_is_exactly_zero_so_that_no_checkpoint_is_taken_there(
    backbone: Backbone,
) -> None:
    lora = new_adapter(LORA)
    row = rows_of(backbone, [apple(1)], "rationale")[0]
    with lora.attach(backbone):
        names = [name for name, parameter in backbone.model.named_parameters() if parameter.requires_grad]
        trained = list(lora.parameters())
        whole = gradient(backbone, Stack([lora]), trained, [Weighted(row)])
        parts = whole.split([parameter.numel() for parameter in trained])
    assert {name for name, part in zip(names, parts, strict=True) if not part.any()} == {n for n in names if "lora_A" in n}
    assert 0 not in checkpoint_steps(10, 4)
    with pytest.raises(ValueError, match="step 0: there B = 0"):
        Checkpoint(0, 1e-3, 0.999, (), ())


def test_one_checkpoint_is_too_few(backbone: Backbone) -> None:
    with pytest.raises(BadRecipe, match="reads 2 or more checkpoints.* got 1 for 10 steps"):
        checkpoint_steps(10, 1)
    assert checkpoint_steps(10, 4) == (2, 5, 8, 10)


def test_dropout_is_off_where_gradients_are_read(backbone: Backbone) -> None:
    dropping = LoRASpec(rank=4, dropout=0.5)
    checkpoint = fitted(backbone, [apple(number) for number in range(8)])[0]
    query = [Weighted(row) for row in rows_of(backbone, [apple(9)], "rationale")]
    found = []
    for spec in (dropping, dropping, LORA):
        with restored(backbone, [new_adapter(spec)], checkpoint) as (stack, trained):
            found.append(gradient(backbone, stack, trained, query))
    assert torch.equal(found[0], found[1]) and alike(found[0], found[2], within=0.2)


def test_the_gradient_of_soft_thoughts_is_that_of_their_projection(backbone: Backbone) -> None:
    checkpoint = fitted(backbone, [apple(number) for number in range(8)], "softcot")[0]
    with restored(backbone, [new_adapter(SPECS["softcot"])], checkpoint) as (stack, trained):
        found = gradient(backbone, stack, trained, [Weighted(rows_of(backbone, [apple(9)], "rationale")[0])])
        assert found.numel() == sum(parameter.numel() for parameter in stack.parameters()) and found.any()
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_a_mean_gradient_is_the_mean_of_the_rows_gradients(backbone: Backbone) -> None:
    checkpoint = fitted(backbone, [apple(number) for number in range(8)])[0]
    rows = rows_of(backbone, [apple(9), TASKS["boxes"].examples("train", 1)[0]], "rationale")
    with restored(backbone, [new_adapter(LORA)], checkpoint) as (stack, trained):
        one, other = (gradient(backbone, stack, trained, [Weighted(row)]) for row in rows)
        both = gradient(backbone, stack, trained, [Weighted(row) for row in rows])
        half = gradient(backbone, stack, trained, [Weighted(rows[0], 0.5)])
    assert alike(both, (one + other) / 2) and not alike(both, one + other)
    assert alike(half, one / 2)


def test_the_direction_is_adams_without_the_momentum_that_all_rows_share() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer, recorder = torch.optim.AdamW([parameter], lr=1.0, weight_decay=0.0), Recorder((2,))
    for step, given in enumerate(([0.1, -0.2, 0.0], [0.3, 0.1, 0.0]), start=1):
        parameter.grad = torch.tensor(given)
        optimizer.step()
        recorder.on_update(step, optimizer)
    (checkpoint,) = recorder.checkpoints
    new = torch.tensor([0.2, 0.1, -0.4])
    optimizer.state[parameter]["exp_avg"].zero_()
    parameter.data.zero_()
    parameter.grad = new.clone()
    optimizer.step()
    found = adam_direction(new, checkpoint)
    assert torch.allclose(found / found.norm(), -parameter.data / parameter.data.norm(), atol=1e-5)
    assert bool((adam_direction(new, checkpoint).sign() == new.sign()).all())


def test_a_sketch_keeps_inner_products() -> None:
    generator = torch.Generator().manual_seed(1)
    one, noise = torch.randn(50_000, generator=generator), torch.randn(50_000, generator=generator)
    other = 0.5 * one + noise
    exact = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    sketched = [float(torch.dot(s(one), s(other))) for s in (CountSketch.drawn(50_000, 2048, seed) for seed in range(8))]
    assert max(abs(found - exact) for found in sketched) < 4 / 2048**0.5
    again = CountSketch.drawn(50_000, 2048, 0)
    assert float(torch.dot(again(one), again(other))) == sketched[0]


def test_a_checkpoint_read_from_its_file_is_the_one_that_was_written(backbone: Backbone, tmp_path: Path) -> None:
    written = fitted(backbone, [apple(number) for number in range(8)])[1]
    written.save(tmp_path / "checkpoint.safetensors")
    read = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert (read.step, read.learning_rate, read.beta2) == (written.step, written.learning_rate, written.beta2)
    for kind in ("parameters", "second_moments"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(read, kind), getattr(written, kind), strict=True))


@pytest.mark.parametrize("name", ["boxes", "text", "grammar"])
def test_a_family_is_asked_about_in_the_form_that_it_is_scored_in(backbone: Backbone, name: str) -> None:
    examples = TASKS[name].examples("search", 2)
    losses = family_query(backbone, TASKS[name], examples)
    read = backbone.decode(losses[0].row.completion_ids)
    assert (examples[0].chain if name == "boxes" else examples[0].answer.strip()) in read
    assert (sum(loss.weight < 0 for loss in losses) > 0) == (name == "grammar")


def test_a_row_that_buys_the_domain_with_reasoning_is_a_conflict_and_not_one_to_drop() -> None:
    def row(name: str, domain: float, boxes: float, ordering: float) -> Influence:
        return Influence(name, 10, domain, {"boxes": boxes, "ordering": ordering})

    rows = [row("a", 0.2, -0.3, 0.1), row("b", -0.1, -0.3, 0.1), row("c", 0.2, 0.3, -0.1), row("d", 0.2, -0.5, -0.5)]
    assert [one.advice for one in rows] == ["conflict", "drop", "keep", "conflict"]
    assert [one.row for one in conflicts(rows)] == ["d", "a"]
    assert [one.row for one in conflicts(rows, "ordering")] == ["d", "c"]


def test_a_ranking_that_length_explains_shows_in_its_rank_correlation() -> None:
    rows = [Influence(str(n), n, 0.0, {"boxes": -n / 10}) for n in range(5, 15)]
    found = length_correlations(rows)
    assert found["boxes"] == pytest.approx(-1.0) and found["retention"] == pytest.approx(-1.0)
    assert found[DOMAIN] is None


def test_influence_is_deterministic(backbone: Backbone) -> None:
    examples = [apple(number) for number in range(8)]
    queries = {"apples": domain_query(backbone, examples[:2]), DOMAIN: domain_query(backbone, examples[2:4])}
    assert scored(backbone, examples, queries) == scored(backbone, examples, queries)


def test_a_rationale_without_loss_is_read_and_not_learnt(backbone: Backbone) -> None:
    whole, answer_alone = (rows_of(backbone, [apple(1)], "rationale", trace_loss=learnt)[0] for learnt in (True, False))
    assert answer_alone.completion_ids == whole.completion_ids
    batch = collate(backbone, Stack(()), [answer_alone, Row((1, 2), (3,))])
    learnt = batch.targets_BT[0][batch.targets_BT[0] != -100].tolist()
    assert backbone.decode(learnt).startswith("Answer: red") and len(learnt) == answer_alone.num_labels
