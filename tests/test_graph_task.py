"""A graph as a task: held-out paths and wordings, checkable steps, answers that follow the trace, no run of words in common."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from small_graph import town, triples

from adapters.backbone import Backbone
from evaluation.errors import DataChanged, DataError
from evaluation.measures.closed_answer import Question
from evaluation.measures.interventions import mistake_in
from evaluation.overlap import Fingerprints, ngrams, words
from evaluation.shifts import shifts_of
from evaluation.task import SPLITS, Example, is_right, split_of
from evaluation.tasks import task_named
from evaluation.tasks.definition import check_unchanged, definition
from evaluation.tasks.graph import Graph, Triple
from evaluation.tasks.graph_file import graph_file
from evaluation.tasks.graph_task import GRAPH_ICD10, RUN, GraphTask, of_graph
from evaluation.tasks.walks import NoPath

TASK = of_graph("town", town())
both = pytest.mark.parametrize("task", [TASK, GRAPH_ICD10], ids=lambda task: task.name)


def paths(task: GraphTask, examples: list[Example]) -> list[tuple[str, ...]]:
    return [task.found(example.id).walk.nodes for example in examples]


@both
def test_training_items_take_up_to_three_hops_and_held_out_ones_two_to_five(task: GraphTask) -> None:
    hops = {split: Counter(task.length(e.id) for e in task.examples(split, 150)) for split in SPLITS}
    assert set(hops["train"]) == {1, 2, 3} and all(set(hops[split]) == {2, 3, 4, 5} for split in SPLITS[1:])
    assert min(hops["train"].values()) > 30 and min(hops["gate"].values()) > 10


@both
def test_no_held_out_path_is_trained_on_either_way_round_or_inside_a_longer_one(task: GraphTask) -> None:
    trained = set()
    for seed in (0, 1):
        for nodes in paths(task, task.examples("train", 2000, seed)):
            parts = [nodes[i:j] for i in range(len(nodes)) for j in range(i + 3, len(nodes) + 1)]
            trained |= {frozenset((part[0], part[-1])) for part in (nodes, *parts)}
    for split in SPLITS[1:]:
        for nodes in paths(task, task.examples(split, 200)):
            assert frozenset((nodes[0], nodes[-1])) not in trained


@both
def test_a_wording_is_held_out_from_training_and_asked_in_the_other_splits(task: GraphTask) -> None:
    wordings = {split: {e.id.split("/")[-1] for e in task.examples(split, 100)} for split in SPLITS}
    assert wordings["train"] == {"0", "1", "2"} and all(wordings[split] == {"0", "1", "2", "3"} for split in SPLITS[1:])


@both
def test_no_held_out_question_shares_a_run_of_words_with_a_training_question(task: GraphTask) -> None:
    def runs(examples: list[Example]) -> set[str]:
        return {run for example in examples for run in ngrams(words(example.question), RUN)}

    trained = runs(task.examples("train", 2000, seed=5))
    for split in SPLITS[1:]:
        assert not trained & runs(task.examples(split, 200, seed=3))
    assert not Fingerprints.of(task.examples("train", 2000)).repeats(task.examples("gate", 200))


def test_long_names_make_runs_that_are_dropped() -> None:
    # Nine of the eleven words that all names begin with, the wording and the relation: 18 words of a question in common.
    def long(name: str) -> str:
        return f"the so called and very well known to all {name}"

    graph = Graph.of([Triple(long(head), "and all that comes along with it", long(tail)) for head, _, tail in triples()])
    task = of_graph("long", graph, (2,), (2,))
    kept = task.examples("search", 50)
    assert task._shared and len(kept) < len([e for e, _ in zip(task._drawn("search", 0, 50), range(50), strict=False)])


@both
def test_an_examples_group_is_its_split_for_ever(task: GraphTask) -> None:
    for split in SPLITS:
        for example in task.examples(split, 100, seed=7):
            assert split_of(example.group) == split and task.example(example.id) == example


@both
def test_the_gold_trace_holds_and_one_false_hop_is_found_at_its_place(task: GraphTask) -> None:
    for example in task.examples("gate", 60):
        problem = task.problem(example.id)
        assert task.check(example, example.chain).all_right and is_right(task, example, example.chain)
        for place, wrong in enumerate(problem.corrupted):
            spoilt = [*example.steps[:place], wrong, *example.steps[place + 1 :]]
            check = task.check(example, "\n".join([*spoilt, f"Answer: {example.answer}"]))
            assert not check.valid[place] and not check.all_right


@both
def test_one_edited_hop_flips_the_answer_to_another_of_its_type(task: GraphTask) -> None:
    flipped = 0
    for example in task.examples("search", 60):
        walk, mistake = task.found(example.id).walk, mistake_in(task, example)
        if mistake is None:
            continue
        flipped += 1
        assert mistake.answer != example.answer and mistake.answer in task.walks.graph().ends[walk.relations[-1]]
        hops = [step.split(" -> ") for step in (mistake.wrong, *mistake.rest)]
        assert hops[-1][-1] == mistake.answer and all(one[-1] == two[0] for one, two in pairwise(hops))
        # Beyond the false hop everything is true.
        assert all(hop[2] in task.walks.graph().reached(hop[0], hop[1]) for hop in hops[1:])
    assert flipped > 50


def test_an_edge_that_is_not_on_the_path_is_true_and_not_needed() -> None:
    example = next(e for e in TASK.examples("search", 50) if len(TASK.problem(e.id).facts) > len(e.steps))
    beside = next(fact for fact in TASK.problem(example.id).facts if fact not in example.steps)
    check = TASK.check(example, f"{beside}\n{example.chain}")
    assert check.all_right and all(check.valid)


@both
def test_no_answer_is_much_more_frequent_than_the_others(task: GraphTask) -> None:
    for split in SPLITS:
        answers = Counter(example.answer for example in task.examples(split, 200))
        assert max(answers.values()) <= 2 + 2 * answers.total() / len(answers)


def test_starts_are_taken_in_turn_and_not_as_often_as_walks_begin_there() -> None:
    # Half of all uniform draws of a start end in one of the few that have many edges, if a start were drawn by its edges.
    starts = Counter(nodes[0] for nodes in paths(TASK, TASK.examples("train", 150)))
    assert max(starts.values()) <= 5 and len(starts) > 75


@both
def test_choices_are_the_answer_and_its_rivals_in_no_fixed_place(task: GraphTask) -> None:
    examples = task.examples("select", 60)
    for example in examples:
        assert example.choices is not None and example.listed
        assert sorted(example.choices) == sorted((example.answer, *task.problem(example.id).rivals))
    assert len({(e.choices or ()).index(e.answer) for e in examples}) == 4


def test_matching_words_is_not_enough_for_the_icd10_graph() -> None:
    from evaluation.tasks.classification import content_words

    found = []
    for example in GRAPH_ICD10.examples("gate", 200):
        shown = content_words(GRAPH_ICD10.found(example.id).walk.nodes[0])
        shared = {choice: len(content_words(choice) & shown) for choice in example.choices or ()}
        best = [choice for choice in shared if shared[choice] == max(shared.values())]
        found.append((example.answer in best) / len(best))
    assert 0.15 < sum(found) / len(found) < 0.45


def test_the_icd10_graph_has_the_tree_and_its_notes() -> None:
    graph = GRAPH_ICD10.walks.graph()
    assert {"chapter", "block", "category", "never coded with", "does not include", "code first", "use additional code"} <= set(
        graph.ends
    )
    assert graph.reached("Typhoid meningitis", "parent code") == ("Typhoid fever",)
    assert "Gestational diabetes mellitus" in graph.reached("Type 2 diabetes mellitus", "never coded with")
    assert "Tobacco use" in graph.reached("Asthma", "use additional code")
    assert graph.num_nodes > 25_000 and set(graph.ends["chapter"]) <= {n for e in graph.edges.values() for _, n in e}


def test_a_prompt_lists_the_options_and_a_question_is_closed(backbone: Backbone) -> None:
    example = TASK.examples("search", 1)[0]
    mistake = mistake_in(TASK, example)
    also = (mistake.answer,) if mistake else ()
    question = Question.of(backbone, TASK, example, *also)
    assert question.candidates[0] == example.answer and len(question.candidates) == 4  # what the mistake leads to is a rival


def test_a_graph_task_is_shifted_like_any_generated_one() -> None:
    shifted = shifts_of(TASK)
    assert {"wording", "casing", "distractor", "steps_plus_1"} <= shifted.keys()
    example = TASK.examples("search", 3)[2]
    for name, twins in shifted.items():
        twin = twins.example(example.id)
        assert twins.check(twin, twin.chain).all_right, name
        assert len(set(twin.choices or ())) == 4, name
    same = shifted["casing"].example(example.id)
    assert same.rationale == example.rationale and same.question == example.question.upper()


def test_asked_lengths_must_be_there_and_the_usual_ones_are_taken_as_far_as_they_are() -> None:
    two = Graph.of(
        [Triple(f"a{n}", "r", f"b{n % 30}") for n in range(60)] + [Triple(f"b{n}", "s", f"c{n % 9}") for n in range(30)]
    )
    task = of_graph("two", two)
    assert (task.lengths, task.held_out_lengths) == ((1, 2), (2,))
    with pytest.raises(NoPath, match="An item of 3 hops"):
        of_graph("two", two, hops=(1, 3))
    one = Graph.of([Triple(f"a{n}", "r", f"b{n}") for n in range(60)])
    with pytest.raises(NoPath, match="An item of 2 hops"):
        of_graph("one", one)


def test_a_small_graph_gives_what_it_has_and_ends() -> None:
    rows = [Triple(f"a{n}", "r", f"b{n % 12}") for n in range(24)] + [Triple(f"b{n}", "s", f"c{n % 6}") for n in range(12)]
    task = of_graph("few", Graph.of(rows))
    found = {split: task.examples(split, 5000) for split in SPLITS}
    assert 20 < sum(map(len, found.values())) <= 60
    assert all(len({e.group for e in examples}) == len(examples) for examples in found.values())


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    (tmp_path / "town.tsv").write_text("".join("\t".join(row) + "\n" for row in triples()))
    (tmp_path / "task.toml").write_text('name = "town"\ngraph = "town.tsv"\nheld_out_hops = [2, 3]\n')
    return tmp_path / "task.toml"


def test_a_task_file_names_a_graph(task_file: Path) -> None:
    task = task_named(str(task_file))
    assert isinstance(task, GraphTask) and (task.lengths, task.held_out_lengths) == ((1, 2, 3), (2, 3))
    assert task.examples("gate", 20) == task_named(str(task_file)).examples("gate", 20)


def test_what_a_fit_read_is_recorded_and_a_changed_graph_is_noticed(task_file: Path) -> None:
    recorded = definition(task_named(str(task_file)))
    check_unchanged(recorded, task_named(str(task_file)), "x@1")
    with (task_file.parent / "town.tsv").open("a") as file:
        file.write("Person 1\tknows\tPerson 99\n")
    with pytest.raises(DataChanged, match="with SHA-256"):
        check_unchanged(recorded, task_named(str(task_file)), "x@1")
    assert "simple-icd-10-cm" in str(definition(GRAPH_ICD10)["packages"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "town"\ngraph = "town.tsv"\nhop = [1]', "breaks a rule at hop: .* Known keys there: name, graph, hops"),
        ('name = "town"\ngraph = "town.tsv"\nheld_out_hops = [1, 2]', "begin at 2"),
        ('name = "town"\ngraph = "town.tsv"\nhops = [0]', "from 1 to 8"),
        ('name = "town"\ngraph = "none.tsv"', "must exist"),
        ('name = "boxes"\ngraph = "town.tsv"', "which is built in. Rename"),
    ],
)
def test_a_task_file_that_breaks_a_rule_is_refused(task_file: Path, text: str, said: str) -> None:
    task_file.write_text(text)
    with pytest.raises(DataError, match=said):
        graph_file(task_file)
