"""Solves alchemy from the text of a question alone, by code of its own: what it cannot answer, nobody can."""

from __future__ import annotations

import re


def read(question: str) -> tuple[str, list[str]]:
    """The element and the operations in their order, whatever the case and the spacing."""
    text = " ".join(question.split())
    found = re.search(r"(?<!\w)[A-Z](?: [A-Z](?!\w))+", text)
    assert found, question
    return found[0].replace(" ", ""), re.findall(r"rot \d+|mirror|shift|reverse", text.lower())


def apply(operation: str, element: str) -> str:
    codes = [ord(atom) - 65 for atom in element]
    if operation == "shift":
        codes = codes[-1:] + codes[:-1]
    elif operation == "reverse":
        codes.reverse()
    elif operation == "mirror":
        codes = [25 - code for code in codes]
    else:
        codes = [(code + int(operation.removeprefix("rot "))) % 26 for code in codes]
    return "".join(chr(code + 65) for code in codes)


def solve(question: str) -> list[str]:
    """Every element from the first to the answer."""
    element, operations = read(question)
    found = [element]
    for operation in operations:
        found.append(apply(operation, found[-1]))
    return found
