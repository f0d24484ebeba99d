"""Held-out text: passages of plain English prose, to be scored by the likelihood of their second half."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evaluation.task import SPLITS, Example, Split, normalise, split_of

# Python's own language reference and the docstrings of its library come with every install, under the PSF licence.
_LIBRARY = (
    ".",
    "asyncio",
    "concurrent",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
_MIN_WORDS, _MAX_WORDS = 60, 120
_PLAIN_WORD = re.compile(r"[(\"“]?[A-Za-z][A-Za-z’'-]*[\"”]?[.,;:)]*")
_CODE = re.compile(r"::|>>>|==|[_{}<>|\\*=]|\(\)|Changed in version|New in version|Deprecated since")


@dataclass(frozen=True)
class TextTask:
    """`question` is the first half of a passage, `answer` the rest, word for word. The group is the document."""

    name: str = "text"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        found = list(_by_split()[split])
        random.Random(f"{self.name}/{split}/{seed}").shuffle(found)
        return found[:count]


TEXT = TextTask()


@cache
def _by_split() -> dict[Split, tuple[Example, ...]]:
    found: dict[str, Example] = {}
    for document, text in _documents():
        for index, words in enumerate(_passages(text)):
            middle = len(words) // 2
            example = Example(
                id=f"text/{document}/{index}", question=" ".join(words[:middle]), answer=" ".join(words[middle:]), group=document
            )
            # Modules copy each other's docstrings; a passage counts once, in the document that comes first.
            found.setdefault(normalise(example.question), example)
    return {split: tuple(example for example in found.values() if split_of(example.group) == split) for split in SPLITS}


def _documents() -> Iterator[tuple[str, str]]:
    from pydoc_data import topics

    yield from ((f"topic/{name}", text) for name, text in sorted(topics.topics.items()))
    library = Path(sysconfig.get_path("stdlib"))
    for folder in _LIBRARY:
        for path in sorted((library / folder).glob("*.py")):
            tree = ast.parse(path.read_bytes())
            owners = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
            texts = [text for owner in owners if (text := ast.get_docstring(owner))]
            yield f"library/{path.relative_to(library).as_posix()}", "\n\n".join(texts)


def _passages(text: str) -> Iterator[list[str]]:
    """Neighbouring paragraphs of prose, joined until they are long enough."""
    words: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if not _is_prose(paragraph):
            continue
        words += paragraph.split()
        if len(words) >= _MIN_WORDS:
            if len(words) <= _MAX_WORDS:
                yield words
            words = []


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    if not words or not words[0][0].isupper() or not words[-1].endswith(".") or _CODE.search(paragraph):
        return False
    return sum(_PLAIN_WORD.fullmatch(word) is not None for word in words) >= 0.9 * len(words)
