"""What the page says first: the gate's sentence, and the few facts that a decision hangs on."""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote

from registry.gate_report import GateReport
from service.report.material import Material, StudyMaterial
from service.report.unmeasured import gate_command

_WORDS = {"pass": "passed", "fail": "failed", "inconclusive": "undecided"}
_MARKS = {"passed": "✓", "failed": "✗", "undecided": "?", "not gated": "–", "not published": "–"}


@dataclass(frozen=True)
class Fact:
    name: str
    told: str
    run: str | None = None  # that its numbers come from


@dataclass(frozen=True)
class Verdict:
    """`next_command` is what a reader would run next, where there is something to run."""

    word: str
    sentence: str
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    next_command: str = ""

    @property
    def mark(self) -> str:
        return _MARKS[self.word]


def verdict(material: Material) -> Verdict:
    release, study, gate = material.release, material.study, material.gate
    facts = [*_gate_facts(material), *_study_facts(study, release.trial if release else None), *_made_facts(material)]
    if release is None:
        assert study is not None
        if study.chosen is None:
            going = f"{study.num_finished} trials finished, {study.running} running"
            return Verdict("not published", f"Study {study.name} has no finished trial yet: {going}.", tuple(facts), ())
        told = f"Trial {study.chosen.number} of study {study.name} would be published; no gate has seen it."
        if not study.chosen.is_feasible:
            told = f"No trial of study {study.name} kept every family; the best, {study.chosen.number}, lost more than a margin."
        return Verdict("not published", told, tuple(facts), (), f"graftline publish {quote(study.name)}")
    if gate is None:
        told = f"{release.full_name} was not brought before the gate: nothing here shows that it kept its reasoning."
        return Verdict("not gated", told, tuple(facts), release.warnings, gate_command(material))
    word = _WORDS[gate.verdict]
    is_over = gate.verdict == "fail" or release.standing.startswith("champion, promoted by")
    sentence = gate.sentence
    if gate.subject != release.full_name:
        sentence += f" (The same files were gated as {gate.subject}.)"
    return Verdict(word, sentence, tuple(facts), release.warnings, "" if is_over else gate_command(material))


def _gate_facts(material: Material) -> list[Fact]:
    gate = material.gate
    if gate is None:
        return []
    assert material.release is not None
    domain, families, run = gate.domain, gate.families, material.release.gate_run
    moved = f"{domain.base_mean:.3f} → {domain.adapted_mean:.3f}, {domain.change:+.3f} (at least {domain.lower:+.3f})"
    facts = [Fact(f"domain {domain.name}", _minus(moved), run), Fact("protected families", _kept(gate), run)]
    if families:
        worst = min(families, key=lambda test: test.change)
        told = f"{worst.name} {worst.change:+.3f} [{worst.lower:+.3f}, {worst.upper:+.3f}], tolerable {worst.threshold:+.3f}"
        facts.append(Fact("largest loss" if worst.change < 0 else "smallest gain of a family", _minus(told), run))
    return facts


def _kept(gate: GateReport) -> str:
    counts = {word: sum(test.verdict == key for test in gate.families) for key, word in _WORDS.items()}
    told = [f"{counts['passed']} of {len(gate.families)} shown within their margin"]
    told += [f"{counts['undecided']} undecided"] if counts["undecided"] else []
    told += [f"{counts['failed']} failed"] if counts["failed"] else []
    told += [f"{len(gate.not_measurable)} not measurable"] if gate.not_measurable else []
    return ", ".join(told)


def _study_facts(study: StudyMaterial | None, trial: int | None) -> list[Fact]:
    if study is None:
        return []
    of = f" of {study.wanted}" if study.wanted is not None else ""
    running = f", {study.running} running" if study.running else ""
    facts = [Fact("study", f"{study.name}: {study.num_finished}{of} trials finished{running}", study.run_id)]
    point = study.trial(trial) if trial in study.ranked and trial is not None else study.chosen
    if point is not None:
        told = _minus(f"gain {point.gain:+.3f}, retention {point.retention:+.2f} margins")
        facts.append(Fact(f"trial {point.number}, in the search", told, point.run_id))
    return facts


def _made_facts(material: Material) -> list[Fact]:
    release = material.release
    if release is None:
        return []
    manifest = release.manifest
    kinds = ", ".join(manifest.profile.adapters) or "a decoding policy"
    told = f"{kinds} at scale {manifest.profile.scale:g} on {manifest.backbone.name}"
    return [Fact("adapter", told, release.run_id), Fact("standing", release.standing)]


def _minus(text: str) -> str:
    """A true minus before numbers, and nowhere else."""
    for before in (" ", "[", "("):
        for digit in "0123456789":
            text = text.replace(f"{before}-{digit}", f"{before}−{digit}")
    return text
