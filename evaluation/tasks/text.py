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

from evaluation.overlap import ngrams, words
from evaluation.task import SPLITS, Example, Split, split_of

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
    found: list[Example] = []
    seen: set[str] = set()
    for document, text in _documents():
        for index, passage in enumerate(_passages(text)):
            grams = ngrams(words(" ".join(passage)))
            # Modules copy each other's docstrings: what was told before is left out, whoever tells it.
            if seen.isdisjoint(grams):
                middle = len(passage) // 2
                first, rest = " ".join(passage[:middle]), " ".join(passage[middle:])
                found.append(Example(id=f"text/{document}/{index}", question=first, answer=rest, group=document))
            seen.update(grams)
    return {split: tuple(example for example in found if split_of(example.group) == split) for split in SPLITS}


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
    passage: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if not _is_prose(paragraph):
            continue
        passage += paragraph.split()
        if len(passage) >= _MIN_WORDS:
            if len(passage) <= _MAX_WORDS:
                yield passage
            passage = []


def _is_prose(paragraph: str) -> bool:
    written = paragraph.split()
    if not written or not written[0][0].isupper() or not written[-1].endswith(".") or _CODE.search(paragraph):
        return False
    return sum(_PLAIN_WORD.fullmatch(word) is not None for word in written) >= 0.9 * len(written)
