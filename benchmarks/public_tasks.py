"""Public sets in a folder given by hand, each as the task file that a user would write.

A folder a set, with train.jsonl, test.jsonl and SOURCE.md, which names the repository and the licence. Rows have `id`,
`question`, `choices` (a list or null), `answer` (the letter of a choice, or the answer), `rationale` and `context`. Nothing of
them is copied: the task files name the data where they lie, and splits are ours, by hash, over the rows of both files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from adapters.whole_file import write_whole

FILES = ("train.jsonl", "test.jsonl")
# Tasks of BIG-Bench Hard in which every row has two to six different options, and a question fewer than 250 letters on average.
BBH = (
    "boolean_expressions",
    "date_understanding",
    "disambiguation_qa",
    "hyperbaton",
    "navigate",
    "sports_understanding",
    "web_of_lies",
)


@dataclass(frozen=True)
class PublicSet:
    """`lines` of the task file after name and file; `columns` beside id, question and answer."""

    folder: str
    what: str
    columns: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    written: bool = False  # its answers are open: a backbone is asked to write them, and else guarded by its gold chains

    @property
    def reasoned(self) -> bool:
        """Its rows have a rationale."""
        return "rationale" in self.columns

    def toml(self, data: Path, by_likelihood: bool = False) -> str:
        """Only what is fitted has training rows."""
        files = ", ".join(f'"{data / self.folder / file}"' for file in FILES)
        chosen = "choices" in self.columns
        return "\n".join(
            [
                f'name = "{self.named(by_likelihood)}"',
                f"file = [{files}]",
                *(['answers = "letter"', "list_choices = false"] if chosen else []),
                *(['guard = "likelihood"'] if by_likelihood else []),
                *([] if self.folder in DOMAINS else ["held_out = true"]),
                *self.lines,
                "[columns]",
                *(f'{column} = "{column}"' for column in ("id", "question", "answer", *self.columns)),
                "",
            ]
        )

    def named(self, by_likelihood: bool = False) -> str:
        return self.folder.replace("_", "-") + ("-chains" if by_likelihood else "")


DOMAINS = {
    one.folder: one
    for one in (
        PublicSet("arc_easy", "elementary science", ("choices",), ('repeats = "leave_out"',)),
        PublicSet("legal_diversity", "law: is there diversity jurisdiction", ("choices", "rationale", "context")),
        PublicSet("pubmedqa", "medicine: what an abstract answers", ("choices", "rationale", "context")),
    )
}
RETENTION = {
    one.folder: one
    for one in (
        PublicSet("gsm8k", "grade-school mathematics", ("rationale",), written=True),
        PublicSet("svamp", "the same in one step, an equation for a chain", ("rationale",), written=True),
        PublicSet("bbh", "BIG-Bench Hard, seven short tasks", ("choices",), (f"where = {{task = {list(BBH)}}}",)),
        DOMAINS["arc_easy"],
    )
}


def write_tasks(data: Path, folder: Path) -> dict[str, Path]:
    """The task file of every set by the task's name; a set that may be guarded by its chains has a second one."""
    found = {}
    for one in {**DOMAINS, **RETENTION}.values():
        for by_likelihood in (False, True) if one.written else (False,):
            file = folder / f"{one.named(by_likelihood)}.toml"
            write_whole(file, one.toml(data.resolve(), by_likelihood))
            found[one.named(by_likelihood)] = file
    return found


def missing(data: Path) -> list[str]:
    """Files that the folder lacks."""
    wanted = (Path(one.folder) / file for one in {**DOMAINS, **RETENTION}.values() for file in (*FILES, "SOURCE.md"))
    return [str(file) for file in wanted if not (data / file).is_file()]


def licence(data: Path, one: PublicSet) -> tuple[str, str]:
    """Repository and licence, as SOURCE.md tells them."""
    text = (data / one.folder / "SOURCE.md").read_text(encoding="utf-8")
    told = (re.search(rf"^- {key}: (.*)$", text, re.M) for key in ("Repository", "Licence"))
    return tuple(found[1] if found else "not told" for found in told)  # type: ignore[return-value]
