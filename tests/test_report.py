"""The page of a report: the verdict first, every section or the command that measures it, and nothing that is loaded or run."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from told_reports import (
    DOMAIN,
    bare,
    evaluated,
    gate_report,
    influences,
    matrix,
    release,
    row,
    study,
    traces,
    trial,
    whole,
)

from service.report.material import Evaluated, Influences, Material, Matrix
from service.report.page import Page, Store, page
from service.report.sections import SECTIONS

COMMAND = "mlflow ui --backend-store-uri sqlite:////home/mlflow.db"
LOCAL = Store({}, COMMAND)
HOSTILE = "<script>alert('$x$')</script>\x00\" onload=\"x"
IDS = ["retention", "pareto", "staircase", "dependence", "budget", "calibration", "forgetting", "influence", "provenance"]


class Read(HTMLParser):
    """What a browser would find: tags with their attributes, the text of each section, and the values of numbers."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, str] = {"": ""}
        self.style, self._place, self._tag = "", "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        self._tag = tag
        if tag == "section":
            self._place = given["id"]
            self.text[self._place] = ""

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""
        if tag == "section":
            self._place = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "style":
            self.style += data
        else:
            self.text[self._place] += data

    @property
    def values(self) -> set[float]:
        return {float(given["value"]) for tag, given in self.tags if tag == "data"}

    def all(self, name: str) -> list[dict[str, str]]:
        return [given for tag, given in self.tags if tag == name]


@pytest.fixture(scope="module")
def made() -> Page:
    return page(whole(), LOCAL)


@pytest.fixture(scope="module")
def read(made: Page) -> Read:
    return Read(made.html)


@pytest.fixture(scope="module")
def empty() -> Read:
    return Read(page(bare(), LOCAL).html)


def test_the_gates_sentence_comes_first(read: Read) -> None:
    assert gate_report().sentence in read.text[""]
    assert next(given for tag, given in read.tags if given.get("class", "").startswith("verdict"))["class"] == "verdict passed"


@pytest.mark.parametrize(("lost", "word"), [(0.0, "passed"), (0.04, "undecided"), (0.6, "failed")])
def test_a_verdict_is_told_by_word_and_mark(lost: float, word: str) -> None:
    from service.report.verdict import verdict

    gate = gate_report(lost=lost)
    found = verdict(bare(release=release(gate)))
    assert (found.word, found.sentence) == (word, gate.sentence)


def test_every_section_is_there_in_order_with_how_to_read_it(read: Read, made: Page) -> None:
    assert [given["id"] for given in read.all("section")] == IDS
    assert made.missing == ()
    assert "Not measured" not in "".join(read.text.values())
    for section in IDS:
        told = SECTIONS[IDS.index(section)](bare())
        assert told.reading in read.text[section] and told.limits in read.text[section]


@pytest.mark.parametrize(
    ("section", "command"),
    [
        ("retention", "graftline promote shelves@2"),
        ("retention", "graftline evaluate shelves@2"),
        ("staircase", "graftline report shelves@2 --examples 2"),
        ("dependence", "graftline evaluate shelves@2 --measures faithfulness"),
        ("budget", "graftline evaluate shelves@2 --measures budget"),
        ("calibration", "graftline evaluate shelves@2 --measures brier_score"),
        ("forgetting", "graftline sequence FIRST.toml SECOND.toml"),
        ("influence", "graftline attribute RECIPE.toml"),
    ],
)
def test_what_was_not_measured_says_which_command_measures_it(empty: Read, section: str, command: str) -> None:
    assert "Not measured" in empty.text[section] and command in empty.text[section]
    assert section in IDS and not [given for given in empty.all("svg")]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("retention", ("passed", "boxes", "must be above")),
        ("pareto", ("Pareto front", "chosen and released: trial 1", "the loss is not finite", "3 running")),
        ("staircase", ("parcel 1", "Red goes north.", "the same, read by itself", "gave no answer", "carried by step 1, 2")),
        ("dependence", ("own traces, read by itself", "paraphrase")),
        ("budget", ("right at 16", "tokens of the trace")),
        ("calibration", ("beyond chance", "Brier")),
        ("forgetting", ("versions of shelves", "2: letters", "forgetting")),
        ("influence", ("row 0", "confirmed", "the worst rows left out")),
        ("provenance", ("lora at scale 0.5", "f" * 64, "2.13.0")),
    ],
)
def test_a_section_shows_what_is_stored(section: str, words: tuple[str, ...]) -> None:
    found = SECTIONS[IDS.index(section)](whole(study=study(running=3)))
    assert found.id == section
    for word in words:
        assert word in str(found), word


def test_a_number_on_the_page_is_the_stored_number(read: Read) -> None:
    gate, stored = gate_report(), whole()
    for test in gate.tests:
        assert {test.change, test.base_mean, test.adapted_mean, test.threshold} <= read.values
    for one in stored.evaluated:
        if one.measure != "budget":
            assert one.row["change"] in read.values, one.measure
    assert stored.study is not None
    assert {stored.study.trial(number).gain for number in stored.study.ranked} <= read.values
    assert influences().told["rows"][0]["retention"] in read.values
    assert matrix().told["transfer"]["forgetting"] in read.values
    assert 0.4242 not in read.values


def test_the_page_loads_nothing_and_runs_nothing(read: Read) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "image", "base", "form"} & {tag for tag, _ in read.tags}
    for tag, given in read.tags:
        assert not [name for name in given if name.startswith("on") or name in ("src", "srcset", "data", "action")], tag
        for name in ("href", "xlink:href"):
            assert given.get(name, "#").startswith("#"), given
        assert "url(" not in given.get("style", "").replace("url(#", ""), given
    assert "@import" not in read.style and "url(" not in read.style
    assert read.all("meta")[1]["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def _hostile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hostile(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_hostile(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text() -> None:
    rows = [
        Evaluated(one.row | {"task": f"{HOSTILE}{place}", "unit": HOSTILE}, HOSTILE, HOSTILE)
        for place, one in enumerate(evaluated())
    ]
    rows.append(Evaluated(row(HOSTILE, "budget", not_measurable=HOSTILE), HOSTILE, HOSTILE))
    told = influences().told
    bad = replace(
        whole(),
        subject=HOSTILE,
        study=replace(
            study(HOSTILE),
            not_measurable={HOSTILE: HOSTILE},
            trials=(*study().trials, replace(trial(4, 0, 0), state="FAIL", failure=HOSTILE)),
        ),
        release=replace(release(gate_report(HOSTILE), HOSTILE), standing=HOSTILE, warnings=(HOSTILE,)),
        measured_as=HOSTILE,
        domain=HOSTILE,
        evaluated=tuple(rows),
        traces=traces(HOSTILE, HOSTILE, HOSTILE),
        matrices=(Matrix(HOSTILE, HOSTILE, _named(matrix().told), (HOSTILE,)),),
        influences=Influences(HOSTILE, {**told, "said": [HOSTILE], "rows": [{**one, "row": HOSTILE} for one in told["rows"]]}),
    )
    made = page(bad, Store({HOSTILE: "http://mlflow:5000/#/runs/1"}, None))
    found = Read(made.html)
    assert "script" not in {tag for tag, _ in found.tags}
    assert not [given for _, given in found.tags if any(name.startswith("on") for name in given)]
    assert "<script" not in made.html and HOSTILE.replace("\x00", "") in "".join(found.text.values()).replace("\x00", "")


def _named(told: Any) -> Any:
    columns = [{**one, "task": HOSTILE} for one in told["domains"]]
    return {**told, "domains": columns}


def test_the_same_input_gives_the_same_bytes(made: Page) -> None:
    assert page(whole(), LOCAL).html == made.html


def test_runs_are_links_where_a_server_shows_them_and_ids_elsewhere(read: Read) -> None:
    assert COMMAND in read.text[""] and not [one for one in read.all("a") if one["href"].startswith("http")]
    assert "1" * 32 in {one.get("title", "").removeprefix("run ") for one in read.all("code")}
    tables = whole(evaluated=(), traces=None, matrices=(), influences=None)
    links = {run_id: f"https://mlflow.example/#/experiments/1/runs/{run_id}" for run_id in tables.run_ids()}
    served = Read(page(tables, Store(links, None)).html)
    assert {one["href"] for one in served.all("a") if not one["href"].startswith("#")} == set(links.values())
    assert COMMAND not in served.text[""]


def test_every_picture_is_told_in_words_and_no_id_is_there_twice(read: Read) -> None:
    pictures = read.all("svg")
    assert len(pictures) == 12
    for given in pictures:
        assert given["role"] == "img" and len(given["aria-label"]) > 40
    ids = [given["id"] for _, given in read.tags if "id" in given]
    assert len(ids) == len(set(ids))
    used = {
        match
        for _, given in read.tags
        for match in re.findall(r"#([\w-]+)", f"{given.get('href', '')} {given.get('xlink:href', '')}")
    }
    assert used <= set(ids)


def test_pictures_take_their_colours_from_the_page(made: Page) -> None:
    svg = "".join(re.findall(r"<svg.*?</svg>", made.html, re.S))
    assert "var(--ink)" in svg and set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#000000"}


def test_a_study_without_a_finished_trial_says_how_it_stands() -> None:
    running = Material("shelves", study(trials=(), running=2), None, None, DOMAIN)
    found = Read(page(running, LOCAL).html)
    assert "has no finished trial yet: 1 trials finished, 2 running" in found.text[""]
    assert "graftline sweep status shelves" in found.text["pareto"]


def test_a_study_that_is_not_published_shows_what_the_search_read() -> None:
    made = Material("shelves", study(), None, None, DOMAIN)
    found = Read(page(made, LOCAL).html)
    assert "Trial 1 of study shelves would be published; no gate has seen it." in found.text[""]
    assert "graftline publish shelves" in found.text[""] and -0.0123 in found.values


def test_a_release_of_another_trial_than_the_chosen_one_is_marked_apart() -> None:
    found = SECTIONS[IDS.index("pareto")](whole(release=replace(release(None), trial=2)))
    assert "chosen: trial 1, released: trial 2" in found.pictures[0].alt


@pytest.mark.parametrize(("last", "hatched"), [(0.45, True), (0.9, False)])
def test_a_score_that_was_higher_before_is_hatched(last: float, hatched: bool) -> None:
    told = matrix().told
    scores = [*told["scores"][:-1], [last, told["scores"][-1][1]]]
    found = SECTIONS[IDS.index("forgetting")](whole(matrices=(Matrix("m", "s", {**told, "scores": scores}),)))
    assert ("<pattern" in found.pictures[0].svg) is hatched


def test_a_gain_that_did_not_fall_has_no_cause_of_its_fall() -> None:
    def causes(low: float, high: float) -> str:
        one = row(DOMAIN, "information_gain_external", low=low, high=high)
        return str(SECTIONS[IDS.index("staircase")](whole(evaluated=(Evaluated(one, "7" * 32, "tiny"),))).tables[0].rows)

    assert "memorised" in causes(-0.2, -0.1) and "memorised" not in causes(-0.2, 0.1)


def _router() -> Material:
    derived = release(None).manifest.model_copy(update={"derived": {"router": {}}})
    return bare(release=replace(release(None), manifest=derived), measured_as=None)


@pytest.mark.parametrize(
    "material",
    [
        bare(),
        _router(),
        Material("shelves", study(trials=()), None, None, DOMAIN),
        Material("shelves", study(), None, "a b", DOMAIN),
    ],
    ids=["release", "router", "running study", "study"],
)
def test_nothing_is_left_out_silently(material: Material) -> None:
    found = [section(material) for section in SECTIONS]
    assert all(section.missing or not section.is_empty for section in found)
    told = " ".join(one.command for section in found for one in section.missing)
    if material.release is not None:
        assert ("graftline router promote shelves@2" in told) is material.release.is_router
    assert ("graftline evaluate" in told) is (material.measured_as is not None)
    if material.measured_as == "a b":
        assert "graftline evaluate 'a b' --measures budget" in told
