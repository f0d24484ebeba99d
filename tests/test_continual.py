"""The continual matrix: worked examples, denominators, and files that do not make a table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.backbone import Backbone
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.base_cache import BaseCache
from evaluation.continual import ContinualMatrix
from evaluation.errors import IncompleteMatrix, UnreadableFile
from evaluation.evaluate import Planned, Role, evaluate
from evaluation.measures import MEASURES
from evaluation.tasks import TASKS
from service.commands.continual import continual
from service.commands.evaluate import draw_reliability
from service.commands.subject import LOADED

ROOT = Path(__file__).parent.parent
DOMAINS = ("a", "b", "c")
# R: rows are the backbone and three stages, columns the domains and one family
R = ((0.2, 0.3, 0.1, 0.8), (0.8, 0.35, 0.15, 0.7), (0.85, 0.9, 0.25, 0.75), (0.5, 0.7, 0.7, 0.6))


def row(task: str, role: str, base: float, adapted: float) -> dict[str, Any]:
    return {
        "measure": "choice_accuracy" if role == "domain" else "generation",
        "unit": "share right",
        "task": task,
        "role": role,
        "base": base,
        "adapted": adapted,
        "change": adapted - base,
        "low": adapted - base - 0.05,
        "high": adapted - base + 0.05,
        "n": 60,
        "chance": 0.1 if role == "domain" else 0.0,
        "items": {"ids": [f"{task}/{index}" for index in range(60)]},
        "summary": {"negative_flips": 0.25, "positive_flips": 0.05, "agreement": 0.6, "flips_p_value": 0.01},
    }


def documents() -> list[dict[str, Any]]:
    """One file a stage and domain, the stage's own first; the family's row is in every one of them."""
    found = []
    for stage, own in enumerate(DOMAINS, start=1):
        for domain in (own, *(other for other in DOMAINS if other != own)):
            at = DOMAINS.index(domain)
            rows = [row(domain, "domain", R[0][at], R[stage][at]), row("boxes", "protected", R[0][3], R[stage][3])]
            rows.append({**rows[1], "measure": "correction", "role": "report"})
            found.append({"subject": f"after-{own}", "backbone": "tiny", "rows": rows, "not_measurable": {}})
    return found


def test_rows_are_the_backbone_and_the_stages_and_columns_the_domains_and_what_is_guarded() -> None:
    matrix = ContinualMatrix.of(documents())
    assert matrix.stages == ("after-a", "after-b", "after-c")
    assert [column.task for column in (*matrix.domains, *matrix.retention)] == ["a", "b", "c", "boxes"]
    assert tuple(map(tuple, matrix.scores.tolist())) == R


def test_the_transfers_by_hand() -> None:
    found = ContinualMatrix.of(documents()).transfer
    assert found.average_accuracy == pytest.approx((0.5 + 0.7 + 0.7) / 3)
    assert found.backward_transfer == pytest.approx(((0.5 - 0.8) + (0.7 - 0.9)) / 2)
    assert found.forward_transfer == pytest.approx(((0.35 - 0.3) + (0.25 - 0.1)) / 2)
    assert found.forgetting == pytest.approx(((0.85 - 0.5) + (0.9 - 0.7)) / 2)
    assert found.learning_accuracy == pytest.approx((0.8 + 0.9 + 0.7) / 3)
    assert found.anytime_accuracy == pytest.approx((0.8 + (0.85 + 0.9) / 2 + 1.9 / 3) / 3)


def test_backward_transfer_is_over_the_earlier_domains_and_not_over_all() -> None:
    matrix = ContinualMatrix.of(documents())
    over_all = -0.5 / 3  # with the structural zero of the last domain
    assert matrix.transfer.backward_transfer != pytest.approx(over_all)
    assert matrix.as_dict()["denominators"]["backward_transfer"] == "T - 1 earlier domains"


def test_a_single_stage_has_nothing_to_transfer() -> None:
    found = ContinualMatrix.of(documents()[:1]).transfer
    assert (found.backward_transfer, found.forward_transfer, found.forgetting) == (None, None, None)
    assert found.average_accuracy == found.learning_accuracy == found.anytime_accuracy == 0.8


def test_a_stage_that_changes_nothing_forgets_nothing() -> None:
    same = [
        {**document, "rows": [{**r, "adapted": r["base"], "change": 0.0} for r in document["rows"]]} for document in documents()
    ]
    found = ContinualMatrix.of(same).transfer
    assert (found.backward_transfer, found.forward_transfer, found.forgetting) == (0.0, 0.0, 0.0)


def test_the_share_kept_is_above_chance_and_only_of_what_the_backbone_can_do() -> None:
    matrix = ContinualMatrix.of(documents())
    boxes, first = matrix.retention[0], matrix.domains[0]
    assert [boxes.share_kept(stage) for stage in (1, 2, 3)] == pytest.approx([0.875, 0.9375, 0.75])
    assert matrix.domains[1].share_kept(1) == pytest.approx((0.35 - 0.1) / (0.3 - 0.1))
    assert first.backbone - (first.chance or 0) == pytest.approx(0.1) and first.share_kept(1) is None


def test_flips_show_the_damage_that_a_net_change_hides() -> None:
    cell = ContinualMatrix.of(documents()).retention[0].cells[0]
    assert (cell.negative_flips, cell.positive_flips, cell.agreement) == (0.25, 0.05, 0.6)


def drop_the_family(found: list[dict[str, Any]]) -> None:
    for document in found[3:6]:
        document["rows"] = document["rows"][:1]


def drop_a_domain(found: list[dict[str, Any]]) -> None:
    del found[4]


def spoil(value: float | None) -> Callable[[list[dict[str, Any]]], None]:
    def change(found: list[dict[str, Any]]) -> None:
        found[1]["rows"][0].update(adapted=value, not_measurable="8 items are too few")

    return change


def other_items(found: list[dict[str, Any]]) -> None:
    found[3]["rows"][0]["n"] = 30


def items_of_another_draw(found: list[dict[str, Any]]) -> None:
    """As many, with the same scores."""
    found[3]["rows"][0]["items"]["ids"][:2] = ["b/new", "b/newer"]


def items_of_another_draw_in_one_stage(found: list[dict[str, Any]]) -> None:
    found[1]["rows"][1]["items"]["ids"][0] = "boxes/new"


def other_backbone(found: list[dict[str, Any]]) -> None:
    found[8]["backbone"] = "large"


def two_scores(found: list[dict[str, Any]]) -> None:
    found[1]["rows"][1]["adapted"] = 0.1


def two_units(found: list[dict[str, Any]]) -> None:
    for document in found:
        if document["rows"][0]["task"] == "c":
            document["rows"][0]["unit"] = "ROUGE"


def own_domain_last(found: list[dict[str, Any]]) -> None:
    found[3], found[4] = found[4], found[3]


def no_domain(found: list[dict[str, Any]]) -> None:
    found.append({"subject": "bare", "backbone": "tiny", "rows": []})


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (drop_the_family, "'after-b' has no generation of 'boxes'"),
        (drop_a_domain, "'after-b' has no choice_accuracy of 'a'"),
        (spoil(float("nan")), "of 'b' is not measurable after 'after-a': 8 items are too few"),
        (spoil(None), "of 'b' is not measurable after 'after-a'"),
        (other_items, "of 'b' has 0.3 on 60 items and, beside 'after-b', 0.3 on 30"),
        (
            items_of_another_draw,
            "choice_accuracy of 'b' is of others in 'after-b' than in 'after-a' .2 of 60 differ, such as 'b/0'.",
        ),
        (
            items_of_another_draw_in_one_stage,
            "generation of 'boxes' is of others in another file of 'after-a' than in 'after-a' .1 of 60 differ",
        ),
        (other_backbone, "name large, tiny"),
        (two_scores, "'after-a' has 0.7 and 0.1 for generation of 'boxes'"),
        (two_units, "these are in choice_accuracy .ROUGE., choice_accuracy .share right."),
        (own_domain_last, "'after-b' and an earlier one both begin with 'a'"),
        (no_domain, "'bare' has none"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_makes_no_table_is_refused_in_one_sentence(spoilt: Callable[[list[dict[str, Any]]], None], said: str) -> None:
    found = deepcopy(documents())
    spoilt(found)
    with pytest.raises(IncompleteMatrix, match=said):
        ContinualMatrix.of(found)


def stored(directory: Path) -> list[str]:
    files = []
    for index, document in enumerate(documents()):
        files.append(str(directory / f"{index}.json"))
        Path(files[-1]).write_text(json.dumps(document))
    return files


def graftline(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, where torch cannot be imported."""
    blocked = f"import sys; sys.modules['torch'] = None; sys.argv = ['graftline', *{arguments!r}]"
    code = f"{blocked}; import service.cli; service.cli.main()"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={"COLUMNS": "160"})


def test_the_command_reads_what_evaluate_wrote_without_torch(tmp_path: Path) -> None:
    done = graftline("continual", *stored(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["transfer"]["backward_transfer"] == pytest.approx(-0.25)
    assert found["retention"][0]["share_kept"] == pytest.approx([0.875, 0.9375, 0.75])


@pytest.fixture
def engine(backbone: Backbone) -> TorchEngine:
    engine = TorchEngine(backbone)
    engine.load(LOADED, Profile((random_update(backbone, 0.5),)))
    return engine


def test_what_an_evaluation_stores_makes_a_matrix(engine: TorchEngine, backbone: Backbone) -> None:
    roles: tuple[tuple[str, str, Role], ...] = (
        ("choice_accuracy", "icd10-chapter", "domain"),
        ("pair_preference", "grammar", "protected"),
    )
    plan = [Planned(MEASURES[name], TASKS[task], TASKS[task].examples("select", 8), role) for name, task, role in roles]
    stored = json.loads(json.dumps(evaluate(engine, backbone, LOADED, plan).as_dict()))
    matrix = ContinualMatrix.of([{"subject": "one", "backbone": "tiny", **stored}])
    domain, grammar = matrix.domains[0], matrix.retention[0]
    assert 0 < (domain.chance or 0) < 0.5 and grammar.chance == 0.5
    assert domain.cells[0].agreement is not None and grammar.cells[0].agreement is None
    assert domain.cells[0].score == pytest.approx(domain.backbone + domain.cells[0].change)


def test_the_reliability_of_the_domain_is_drawn(engine: TorchEngine, backbone: Backbone, tmp_path: Path) -> None:
    caches = {name: BaseCache(tmp_path / name, "float32") for name in ("cache", "adapted_cache")}
    subject = SimpleNamespace(engine=engine, backbone=backbone, domain=TASKS["icd10-chapter"], **caches)
    draw_reliability(subject, "one", 8, tmp_path / "sure.png")  # type: ignore[arg-type]
    assert (tmp_path / "sure.png").is_file()
    before = engine.stats().forward_tokens
    draw_reliability(subject, "one", 8, tmp_path / "again.png")  # type: ignore[arg-type]
    assert engine.stats().forward_tokens == before  # what was read is stored


def test_the_tables_state_their_denominators(tmp_path: Path) -> None:
    done = graftline("continual", *stored(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "T - 1 earlier domains" in done.stdout and "-0.250" in done.stdout and "after-c" in done.stdout


def test_a_stage_with_a_long_name_cuts_no_word_of_a_table(tmp_path: Path) -> None:
    files = list(map(Path, stored(tmp_path)))
    for file in files:
        document = json.loads(file.read_text())
        file.write_text(json.dumps(document | {"subject": f"{'a/' * 60}{document['subject']}"}))
    done = graftline("continual", *map(str, files))
    assert "…" not in done.stdout and f"{'a/' * 60}after-c\n" in done.stdout, done.stderr


def test_a_row_with_something_else_in_a_column_is_one_sentence(tmp_path: Path) -> None:
    broken = (("task", ["icd10"]), ("low", "x"), ("summary", ["x"]), ("chance", "x"), ("items", None), ("items", {"ids": [1]}))
    broken += (("items", {"ids": ["a", "a"]}), ("items", {"ids": []}), ("n", 10**6), ("n", None), ("low", 10**400))
    for column, value in broken:
        document = deepcopy(documents()[0])
        document["rows"][0][column] = value
        (tmp_path / "edited.json").write_text(json.dumps(document))
        with pytest.raises(UnreadableFile):
            continual([tmp_path / "edited.json"], as_json=False)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[" * 200_000,
        '{"subject": "one", "backbone": "tiny", "rows": [{"task": "icd10", ',
        '{"subject": "one", "backbone": "tiny", "rows": [{"task": "icd10"}]}',
        '{"subject": 1, "backbone": "tiny", "rows": []}',
        '{"subject": "one", "backbone": "tiny", "rows": "none"}',
    ],
    ids=["else", "deep", "cut", "columns", "subject", "rows"],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    done = graftline("continual", str(tmp_path / "other.json"))
    assert done.returncode == 2
    assert done.stderr.startswith("graftline: A stored evaluation is one JSON object") and "Traceback" not in done.stderr
