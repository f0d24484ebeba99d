"""The study: domain gain against retention, the front, and the point that was chosen."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from service.report.material import Material, StudyMaterial, TrialPoint
from service.report.section import Cell, Missing, Picture, Run, Section, Table, change, number, runs_of
from service.report.svg import ACCENT, INK, MUTED, PAPER, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 30  # trials whose numbers stand beside their marks, from the best on
_LINEAR = 1.5  # margins: a greater loss is drawn on a logarithmic scale
_SHOWN = 40  # rows of the table, from the best on


def pareto(material: Material) -> Section:
    study = material.study
    section = (
        "pareto",
        "The search: domain gain against retention",
        "Right is a larger gain, up a smaller loss, and the best corner is at the upper right; filled marks kept every family "
        "within its margin, and the large ring is the trial that would be published.",
        "Every mark was read on few items of the search split, so the chosen one is flattered by having been chosen; the gate "
        "reads it again on fresh items.",
    )
    if study is None:
        named = material.release.full_name if material.release else material.subject
        return Section(*section, missing=(Missing(f"No sweep of {named} is known here: it was made without one, or elsewhere."),))
    if not study.ranked:
        told = f"{study.num_finished} trials are finished, and none has a score yet."
        return Section(
            *section, missing=(Missing(told, f"graftline sweep status {quote(study.name)}"),), runs=runs_of([study.run_id])
        )
    released = material.release.trial if material.release else None
    return Section(
        *section,
        pictures=(_picture(study, released),),
        tables=(_table(study, released),),
        notes=tuple(_notes(study)),
        runs=runs_of([study.run_id]),
    )


def _picture(study: StudyMaterial, released: int | None) -> Picture:
    shown = [study.trial(number) for number in study.ranked]
    marks = [("chosen and released" if released == shown[0].number else "chosen", shown[0], "o")]
    marks += [("released", trial, "s") for trial in shown[1:] if trial.number == released]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhline(0, linewidth=0.8, linestyle=":", color=MUTED, zorder=0)
        axes.axvline(0, linewidth=0.8, linestyle=":", color=MUTED, zorder=0)
        front = [study.trial(number) for number in study.front]
        if len(front) > 1:
            axes.step([t.gain for t in front], [t.retention for t in front], where="post", color=MUTED, label="Pareto front")
        kinds = ((True, "o", "feasible: every family within its margin"), (False, "X", "a family lost too much"))
        for feasible, marker, label in kinds:
            some = [trial for trial in shown if trial.is_feasible is feasible]
            if some:
                gains, kept = [trial.gain for trial in some], [trial.retention for trial in some]
                colour = ACCENT if feasible else PAPER
                axes.plot(gains, kept, linestyle="", marker=marker, markersize=7, mfc=colour, mec=INK, label=label)
        for word, trial, marker in marks:
            label = f"{word}: trial {trial.number}"
            axes.plot([trial.gain], [trial.retention], marker, markersize=16, mfc="none", mec=INK, mew=1.6, label=label)
        for trial in shown[:_NAMED]:
            axes.annotate(str(trial.number), (trial.gain, trial.retention), xytext=(9, 5), textcoords="offset points", fontsize=8)
        if min(trial.retention for trial in shown) < -2 * _LINEAR:
            axes.set_yscale("symlog", linthresh=_LINEAR, linscale=2)
            axes.set_ylim(top=0.5)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))  # powers would be mathtext
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.margins(0.08)
        axes.set_xlabel("domain gain (share of items right, adapted minus backbone)")
        axes.set_ylabel("retention (mean loss in margins; 0 is none)")
        figure.legend(loc="outside lower center", ncols=2, labelspacing=0.9)

    points = "; ".join(f"trial {t.number}: gain {t.gain:+.3f}, retention {t.retention:+.2f}" for t in shown[:_NAMED])
    told = ", ".join(f"{word}: trial {trial.number}" for word, trial, _ in marks)
    alt = f"Domain gain against retention of {len(shown)} trials; {told}. {points}."
    return picture("pareto", 6.6, 4.4, alt, draw)


def _table(study: StudyMaterial, released: int | None) -> Table:
    def row(trial: TrialPoint) -> tuple[Cell, ...]:
        assert trial.score is not None
        settings = ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in trial.params.items())
        chosen, front = trial.score["chosen"], trial.number in study.front
        words = ["feasible" if trial.is_feasible else "a family lost too much"]
        words += ["on the front"] if front else []
        words += ["chosen"] if trial.number == study.ranked[0] else []
        words += ["released"] if trial.number == released else []
        worst = min(trial.score["constraints"].items(), key=lambda entry: -float(entry[1]), default=("-", 0.0))[0]
        cells = (
            change(trial.gain),
            number(chosen.get("gain_stderr")),
            change(trial.retention, 2),
            number(chosen.get("scale"), 2),
        )
        return (str(trial.number), *cells, worst, ", ".join(words), settings, Run(trial.run_id))

    head = ("trial", "gain", "± standard error", "retention, margins", "scale", "nearest to its margin", "", "settings", "run")
    rows = tuple(row(study.trial(number)) for number in study.ranked[:_SHOWN])
    return Table("Finished trials, in the order in which they are gated", head, rows)


def _notes(study: StudyMaterial) -> list[str]:
    of = "" if study.wanted is None else f" of {study.wanted}"
    going = f"; {study.running} running" if study.running else ""
    told = [f"Study {study.name}: {study.num_finished}{of} trials finished{going}."]
    for trial in study.trials:
        if trial.state in ("PRUNED", "FAIL"):
            told.append(f"Trial {trial.number} has no values ({trial.state.lower()}): {trial.failure or 'its worker was gone'}")
    if len(study.ranked) > _SHOWN:
        told.append(f"The table holds the best {_SHOWN} of {len(study.ranked)} trials; MLflow has all.")
    told += [f"{name} is not measurable on this backbone: {why}" for name, why in study.not_measurable.items()]
    return told


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
