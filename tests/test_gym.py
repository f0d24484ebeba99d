"""Datasets of reasoning-gym as tasks: no leaks, no partial credit, no majority answer, no more items than there are."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from scripted_engine import Reply, ScriptedEngine

from adapters.backbone import Backbone
from evaluation.admission import chance_level
from evaluation.errors import DataChanged, DataError, MissingPackage, UnknownTask
from evaluation.measures import MEASURES
from evaluation.retention import search_measure
from evaluation.task import SPLITS, Example, Task, split_of
from evaluation.tasks import task_named
from evaluation.tasks.definition import check_unchanged, definition
from evaluation.tasks.gym import STRIDE, GymTask, load_gym
from evaluation.tasks.gym_file import gym_file

needs_the_package = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs `pip install 'graftline[gym]'`"),
]
SHORT = ("basic_arithmetic", "number_sequence", "chain_sum", "syllogism", "spell_backward", "gcd", "family_relationships")


def write(folder: Path, text: str) -> str:
    (folder / "task.toml").write_text(text)
    return str(folder / "task.toml")


def test_without_the_package_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"not installed, to make 'lcm'.*graftline\[gym\]"):
        load_gym.__wrapped__("lcm")


def test_a_file_without_a_dataset_is_another_kind_of_task(tmp_path: Path) -> None:
    assert gym_file(write(tmp_path, 'name = "mine"\nfile = "rows.jsonl"\n')) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\ngym = "lcm"\nsize = 3', "breaks a rule at size"),
        ('name = "x"\ngym = "lcm"\n[options]\nseed = 3', "sets 'seed'. Remove it"),
        ('name = "boxes"\ngym = "lcm"', "which is built in. Rename"),
    ],
)
def test_a_file_that_sets_what_is_not_its_own_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        task_named(write(tmp_path, text))


class TestWithThePackage:
    pytestmark = needs_the_package

    @pytest.mark.parametrize("name", SHORT)
    def test_a_name_is_a_task_with_the_same_items_every_time(self, name: str) -> None:
        task = task_named(f"gym:{name}")
        assert isinstance(task, Task) and task.name == f"gym:{name}" and task_named(task.name) is task
        for split in SPLITS:
            found = task.examples(split, 30, seed=3)
            assert len(found) == 30 == len({example.id for example in found})
            assert found == task.examples(split, 30, seed=3) != task.examples(split, 30, seed=4)
            assert {split_of(example.group) for example in found} == {split}

    @pytest.mark.parametrize("name", SHORT)
    def test_no_question_is_in_two_splits_whatever_the_seeds(self, name: str) -> None:
        task, owner = task_named(f"gym:{name}"), {}
        for seed in (0, 1, 2**31):
            for split in SPLITS:
                for example in task.examples(split, 100, seed):
                    assert owner.setdefault(example.question, split) == split

    def test_neighbouring_seeds_share_no_item(self) -> None:
        # Seeds 42 and 43 of the package itself are the same items, moved by one.
        task = load_gym("chain_sum")
        first, second = ({e.question for e in task.examples("train", 100, seed)} for seed in (42, 43))
        starts = {int(e.id.split("/")[1]) * STRIDE for seed in (42, 43) for s in SPLITS for e in task.examples(s, 1, seed)}
        assert not first & second and len(starts) == 8 and all(start % STRIDE == 0 for start in starts)

    def test_partial_credit_is_wrong(self) -> None:
        task = load_gym("chain_sum")
        example = task.examples("search", 1)[0]
        source, entry = task._entry(*map(int, example.id.split("/")[1:]))
        assert 0 < source.score_answer(f"The sum is {example.answer}", entry) < 1
        assert task.is_right(example, f"7 + 1 = 8\nAnswer: {example.answer}")
        assert not task.is_right(example, f"Answer: The sum is {example.answer}")
        assert not task.is_right(example, f"Answer: {example.answer}0") and not task.is_right(example, example.answer)

    def test_another_right_answer_is_right_where_the_dataset_says_so(self) -> None:
        task = load_gym("countdown")
        example = task.examples("search", 1)[0]
        assert task.is_right(example, f"Answer: ({example.answer})")

    @pytest.mark.parametrize(("measure", "part"), [("budget", "right_at_end"), ("trace_length", "answer_right")])
    def test_every_measure_takes_another_right_answer_for_right(self, backbone: Backbone, measure: str, part: str) -> None:
        task = load_gym("countdown")
        examples = task.examples("search", 4)

        def bracketed(example: Example, begun: str) -> Reply:
            return Reply(f" ({example.answer})\n" if begun.endswith("Answer:") else f"So.\nAnswer: ({example.answer})")

        engine = ScriptedEngine(backbone, examples, {None: bracketed})
        assert set(MEASURES[measure].read(engine, backbone, None, task, examples).parts[part]) == {1.0}

    def test_an_answer_of_many_lines_is_read_whole(self) -> None:
        task = load_gym("rotate_matrix")
        example = task.examples("search", 1)[0]
        assert "\n" in example.answer
        assert task.is_right(example, f"Answer: {example.answer}") and task.is_right(example, f"Answer:\n{example.answer}\nSo.")
        assert not task.is_right(example, f"Answer: {example.answer.splitlines()[0]}")

    def test_what_a_model_wrote_is_never_run(self, tmp_path: Path) -> None:
        mark = tmp_path / "was_run"
        for name in ("countdown", "puzzle24", "n_queens", "string_insertion", "spiral_matrix", "simple_integration"):
            task = load_gym(name)
            example = task.examples("search", 1)[0]
            assert not task.is_right(example, f"Answer: __import__('pathlib').Path({str(mark)!r}).touch()")
            assert not task.is_right(example, "Answer: 9**9**9**9")
        assert not mark.exists()

    @pytest.mark.parametrize("name", ["graph_color", "propositional_logic", "rush_hour", "boxnet"])
    def test_a_dataset_without_gold_answers_is_refused(self, name: str) -> None:
        with pytest.raises(DataError, match=f"but {name!r} has items without one"):
            task_named(f"gym:{name}")

    def test_a_dataset_that_differs_between_processes_is_refused(self) -> None:
        with pytest.raises(DataError, match="'ransom_note' are not. Choose another dataset"):
            task_named("gym:ransom_note")

    def test_an_unknown_dataset_is_answered_with_the_known_ones(self) -> None:
        with pytest.raises(UnknownTask, match="no dataset 'chainsum'.*chain_sum"):
            task_named("gym:chainsum")

    def test_few_answers_are_balanced_and_are_the_choices(self) -> None:
        task = load_gym("syllogism")
        assert task.majority > 0.6
        for split in SPLITS:
            found = Counter(example.answer for example in task.examples(split, 40))
            assert found == {"Yes": 20, "No": 20}
        assert task.examples("gate", 1)[0].choices == ("No", "Yes")

    def test_the_majority_answer_is_the_chance_level(self) -> None:
        task = load_gym("gcd")
        examples = task.examples("search", 60)
        most = max(Counter(example.answer for example in examples).values()) / 60
        assert most > 0.25 and chance_level(MEASURES["generation"], task, examples) == most
        assert chance_level(MEASURES["choice_accuracy"], task, examples) == most

    def test_whole_numbers_have_near_misses_that_are_not_listed(self) -> None:
        task = load_gym("chain_sum")
        for example in task.examples("search", 20):
            assert example.choices is not None and example.answer in example.choices and len(set(example.choices)) == 4
            assert all(abs(int(choice) - int(example.answer)) <= 10 for choice in example.choices) and not example.listed
        assert search_measure(task).name == "choice_accuracy"
        assert search_measure(load_gym("spell_backward")).name == "generation"

    def test_no_more_items_are_given_than_there_are(self, tmp_path: Path) -> None:
        task = task_named(write(tmp_path, 'name = "one-digit"\ngym = "products"\n[options]\nmax_digits = 1\n'))
        found = [task.examples(split, 300) for split in SPLITS]
        assert task.name == "one-digit"
        questions = [example.question for examples in found for example in examples]
        assert len(questions) == len(set(questions)) == 100

    def test_options_that_the_dataset_refuses_are_one_sentence(self, tmp_path: Path) -> None:
        for options in ("max_hats = 3", "min_terms = -1"):
            with pytest.raises(DataError, match="must be able to make 'chain_sum' with the options"):
                task_named(write(tmp_path, f'name = "x"\ngym = "chain_sum"\n[options]\n{options}\n'))

    def test_the_definition_holds_version_options_and_the_digest_of_rendered_items(self, tmp_path: Path) -> None:
        task = task_named(write(tmp_path, 'name = "x"\ngym = "chain_sum"\n[options]\nmax_terms = 3\n'))
        assert isinstance(task, GymTask)
        recorded = definition(task)
        assert recorded["file"] == {"gym": "chain_sum", "max_terms": 3} and recorded["data_sha256"] == task.digest
        assert "reasoning-gym" in str(recorded["packages"])
        check_unchanged(recorded, task, "x@1")
        with pytest.raises(DataChanged, match="with SHA-256"):
            check_unchanged({**recorded, "data_sha256": "0" * 64}, task, "x@1")
        with pytest.raises(DataChanged, match="reasoning-gym '0.1.1'"):
            check_unchanged({**recorded, "packages": {"reasoning-gym": "0.1.1"}}, task, "x@1")

    def test_the_items_are_the_same_in_another_process(self) -> None:
        names = ("chain_sum", "syllogism", "family_relationships", "letter_counting", "leg_counting")
        code = f"from evaluation.tasks.gym import load_gym; print(*(load_gym(name).digest for name in {names!r}))"
        found = []
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
            found.append(done.stdout)
        assert found[0] == found[1]


def test_an_answer_that_is_right_most_often_is_the_floor_of_any_task(tmp_path: Path) -> None:
    examples = [Example(id=f"{index}", question=f"Q{index}?", answer="1" if index < 6 else f"{index}") for index in range(10)]

    class Skewed:
        name = "skewed"

        def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
            return examples

    assert chance_level(MEASURES["generation"], Skewed(), examples) == 0.6
    assert chance_level(MEASURES["generation"], Skewed(), examples[6:]) == 0.0
