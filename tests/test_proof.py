"""The proof at the top of docs/results.md says what its sections say, and every section says where it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import proof, results, sae
from benchmarks.results import COMPILED, RESULTS, write_section
from benchmarks.sae import CLAMP, COLUMN, MEANS
from benchmarks.sections import Section, sections_of
from benchmarks.systems import FOUND, HURT, NOTHING, UNKNOWN, findings

SECTIONS = sections_of(RESULTS.read_text(encoding="utf-8"))
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?%?")
# Numbers of the sentence itself, and not of what was measured.
WORDED = {"95"}


def strays(row: Mapping[str, str], sections: Mapping[str, Section]) -> set[str]:
    """Numbers of an index line that none of the sections it links to holds."""
    linked = "\n".join(f"{one.title}\n{one.body}" for one in sections.values() if one.link in row["section"])
    return set(NUMBER.findall(row["finding (95 % intervals)"])) - set(NUMBER.findall(linked)) - WORDED


def test_the_index_has_seven_lines_and_is_what_the_sections_say_now() -> None:
    assert len(SECTIONS["proof"].rows("what", "section", "script")) == 7
    told = "It is not what the sections say: run `python -m benchmarks.proof`."
    assert SECTIONS["systems"].body.strip() == proof.systems(SECTIONS).strip(), told
    assert SECTIONS["proof"].body.strip() == proof.proof(SECTIONS).strip(), told


def test_every_number_of_the_index_stands_in_its_section() -> None:
    for row in SECTIONS["proof"].rows("what", "section", "script"):
        assert strays(row, SECTIONS) == set(), row["what"]


def test_a_number_that_is_not_in_its_section_is_found() -> None:
    row = dict(SECTIONS["proof"].rows("what", "section", "script")[0])
    row["finding (95 % intervals)"] += " and +0.987654"
    assert strays(row, SECTIONS) == {"+0.987654"}


def test_a_section_that_was_written_anew_makes_the_index_stale() -> None:
    trap = SECTIONS["accuracy_trap"]
    rate = max((row["learning rate"] for row in trap.rows("data", "learning rate")), key=float)
    gain = next(row for row in trap.rows("data", "learning rate") if row["learning rate"] == rate)["domain gain (95 %)"]
    anew = {**SECTIONS, "accuracy_trap": Section(trap.name, trap.title, trap.body.replace(gain, "+0.99 [+0.98, +1.00]"))}
    assert proof.proof(anew) != proof.proof(SECTIONS) and "+0.99 [+0.98, +1.00]" in proof.proof(anew)


def test_whoever_writes_a_section_writes_the_index_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.md"
    file.write_text(RESULTS.read_text(encoding="utf-8"))
    monkeypatch.setattr(results, "RESULTS", file)
    monkeypatch.setattr(proof, "RESULTS", file)
    sweeps = SECTIONS["sweeps"]
    write_section("sweeps", sweeps.title, sweeps.body.replace("5 promoted", "4 promoted"))
    now = sections_of(file.read_text(encoding="utf-8"))
    assert "4 of 5 sweeps promoted" in now["proof"].body and now["proof"].body.strip() == proof.proof(now).strip()


def test_every_number_of_the_systems_table_stands_in_its_section() -> None:
    for one in findings(SECTIONS):
        missing = set(NUMBER.findall(one.told)) - set(NUMBER.findall(one.section.body))
        assert not missing, f"{one.system}: {missing}"


def test_a_section_that_is_not_there_is_told_as_not_measured() -> None:
    rows = sections_of(f"<!-- proof -->\n## The proof\n\n{proof.proof({})}\n<!-- /proof -->")["proof"].rows("what", "section")
    assert {row["finding (95 % intervals)"] for row in rows} == {proof.MISSING}


@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in COMPILED])
def test_a_section_names_its_script_commit_machine_and_seed(name: str) -> None:
    found = SECTIONS[name].provenance
    assert found is not None, f"The section {name!r} has no line of provenance: see benchmarks.results.provenance."
    assert (Path(proof.__file__).parent / f"{found['script']}.py").is_file() and "cores (" in found["machine"]


def test_a_line_without_a_commit_or_a_seed_is_no_provenance() -> None:
    whole = "`python -m benchmarks.x --full` · commit 0123abc · 2 cores (AMD) · seed 0 · 2026-11-21"
    assert Section("x", "X", f"{whole}\n\ntext").provenance is not None
    for part in (" · commit 0123abc", " · 2 cores (AMD)", " · seed 0"):
        assert Section("x", "X", whole.replace(part, "")).provenance is None


def test_a_system_is_credited_only_with_what_is_clear_of_0() -> None:
    header = "| arm | control | seed | above the control | credited |\n| --- | --- | --- | --- | --- |\n"
    rows = "| a | c | 0 | +0.10 ± 0.05 | yes |\n| b | c | 0 | +0.02 ± 0.05 | no |\n| d | c | 0 | -0.10 ± 0.05 | no |\n"
    failed = "\n| arm | seed | gain | scale |\n| --- | --- | --- | --- |\n| e | 0 | failed: it is 0.36 (AUROC 0.54 on 100) | |\n"
    told = findings({"methods": Section("methods", "Methods", header + rows + failed)})
    assert [one.verdict for one in told] == [FOUND, NOTHING, HURT, UNKNOWN]


PUBLIC = """**science** on b.

| what | by | backbone | plain fine-tuning's best | retention | what the sweep chose | retention |
| --- | --- | --- | --- | --- | --- | --- |
| domain | o | 0.40 | +0.160 [+0.100, +0.220] |  | +0.120 [+0.060, +0.180] |  |
| all 7 families | w | 0.97 | -0.700 [-0.800, -0.600] | lost | -0.010 [-0.030, +0.010] | not inferior |

Domain accuracy of what the sweep chose less plain fine-tuning's best, on the same 276 items: -0.040 [-0.090, +0.010].

**law** on b.

The sweep ended 6 trials, 0 of which kept every family, and found none with a gain that kept all.

| what | by | backbone | plain fine-tuning's best | retention |
| --- | --- | --- | --- | --- |
| domain | o | 0.53 | +0.011 [-0.007, +0.033] |  |
| all 7 families | w | 0.97 | -0.598 [-0.679, -0.500] | lost |
"""
ADMISSIONS = """| set | by | verdict |
| --- | --- | --- |
| gsm8k | likelihood | admitted |
| bbh | options | not measurable: chance |

"""


def test_every_domain_of_the_public_sets_is_told_with_what_the_sweep_chose_or_that_it_found_none() -> None:
    told = proof._public({"public_sets": Section("public_sets", "Public", ADMISSIONS + PUBLIC)})
    assert told is not None
    assert told.startswith("gsm8k (by likelihood) can show a loss on this backbone, bbh cannot. On science, ")
    assert "gains +0.120 [+0.060, +0.180] (-0.040 [-0.090, +0.010] beside it) and changes them by -0.010 [-0.030, +0.010]" in told
    assert told.endswith("by -0.598 [-0.679, -0.500]; the sweep found none with a gain that kept all")


def test_what_is_not_read_yet_is_told_of_its_domain() -> None:
    begun = PUBLIC.partition("The sweep ended")
    told = proof._public({"public_sets": Section("public_sets", "Public", ADMISSIONS + begun[0] + begun[2].partition("\n")[2])})
    assert told is not None and told.endswith("; what the sweep chose is not measured yet")
    assert proof._public({"public_sets": Section("public_sets", "Public", ADMISSIONS)}) == (
        "gsm8k (by likelihood) can show a loss on this backbone, bbh cannot; the fits are not measured yet"
    )


@pytest.mark.parametrize(("shown", "verdicts"), [([], {NOTHING}), ([COLUMN], {FOUND, NOTHING})])
def test_a_feature_that_steers_is_told_as_found(shown: list[str], verdicts: set[str]) -> None:
    steers = {way: way in shown for way in (COLUMN, CLAMP, MEANS)}
    section = Section("sae", "Features", sae.said([{"feature": 3, "strength": 2.0, "steers": steers}]))
    found = findings({"sae": section})
    assert [one.system for one in found] == [f"features, {way}" for way in (COLUMN, CLAMP, MEANS)]
    assert {one.verdict for one in found} == verdicts and {one.system for one in found if one.verdict == FOUND} == {
        f"features, {way}" for way in shown
    }
