"""ICD-10-CM as a graph: the tree, and what its notes say of other codes (excludes, code first, use additional code)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cache

from evaluation.tasks.graph import Graph, Triple
from evaluation.tasks.icd10 import CHAPTERS, title

_MAX_LETTERS = 60  # of a title: five hops of a trace, each with two titles, must fit into what a model writes
# The codes in the brackets that end a reference: (E10.-), (O10-O11, O13-O16).
_REFERENCE = re.compile(r"\(([A-Z][0-9][0-9A-Z.,\- ]*)\)")


@cache
def graph() -> Graph:
    """Chapters, blocks, categories and codes of up to six characters: a seventh tells visits for one injury apart."""
    with warnings.catch_warnings():
        # The package reads its data through an importlib function that Python 3.11 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        import simple_icd_10_cm as icd
    codes = {code: _name(code) for code in icd.get_all_codes() if not icd.is_extended_subcategory(code)}
    kept = {code: name for code, name in codes.items() if len(name) <= _MAX_LETTERS}
    triples = (triple for code in kept for triple in _triples(code) if triple.tail in kept)
    return Graph.of(triples, kept)


def _name(code: str) -> str:
    import simple_icd_10_cm as icd

    if icd.is_chapter(code):
        return CHAPTERS[code]
    described: str = icd.get_description(code, prioritize_blocks=True)
    return title(described) if icd.is_block(code) else described


def _triples(code: str) -> Iterator[Triple]:
    import simple_icd_10_cm as icd

    parent = icd.get_parent(code)
    if parent:
        yield Triple(code, _level(parent), parent)
    notes = (
        ("never coded with", "\n".join(icd.get_excludes1(code))),
        ("does not include", "\n".join(icd.get_excludes2(code))),
        ("code first", icd.get_code_first(code)),
        ("use additional code", icd.get_use_additional_code(code)),
    )
    for relation, note in notes:
        for tail in _referred(note):
            yield Triple(code, relation, tail)


def _level(parent: str) -> str:
    import simple_icd_10_cm as icd

    if icd.is_chapter(parent):
        return "chapter"
    if icd.is_block(parent):
        return "block"
    return "category" if icd.is_category(parent) else "parent code"


def _referred(note: str) -> Iterator[str]:
    """The codes, categories and blocks that a note names. A range that is no block says too little."""
    import simple_icd_10_cm as icd

    for bracket in _REFERENCE.findall(note):
        for reference in bracket.split(","):
            code = reference.strip().removesuffix("-").rstrip(".")
            if code and icd.is_valid_item(code):
                yield code
