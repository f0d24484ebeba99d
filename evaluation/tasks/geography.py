"""Geography: the continent, or the country, that a province, district or capital is in (by countryinfo)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache

from evaluation.task import normalise
from evaluation.tasks.classification import ClassificationTask, Leaf, Mixture, Table

CONTINENTS = {"Africa": "Africa", "Americas": "the Americas", "Asia": "Asia", "Europe": "Europe", "Oceania": "Oceania"}
_A_COUNTRY = 24  # places of one, at most: some are parted into hundreds of districts; which, is drawn


@cache
def table() -> Table:
    return Table(_leaves())


def _leaves() -> Iterator[Leaf]:
    """A place is a group of its own: what is learnt is how the names of a country sound, and no place is in two splits."""
    from countryinfo import all_countries

    for country in sorted(all_countries(), key=lambda one: one.name()):
        told = country.info()
        name, region = str(told.get("name", "")), str(told.get("region", ""))
        if region not in CONTINENTS or not told.get("subregion"):
            continue
        path = (CONTINENTS[region], str(told["subregion"]), name)
        places = [_plain(place) for place in (str(told.get("capital") or ""), *(told.get("provinces") or ()))]
        for place in _some(name, [place for place in places if _is_asked(place, name)]):
            yield Leaf(f"{told['ISO']['alpha3']}/{normalise(place)}", place, path, f"{name}/{normalise(place)}")


def _plain(place: str) -> str:
    """Without what stands in brackets behind it, and the first of two spellings."""
    return " ".join(re.split(r"\s*[(\[/;]|\s+or\s+", place)[0].split())


def _is_asked(place: str, country: str) -> bool:
    """A name that holds its country's, or is hardly one, asks nothing."""
    return len(normalise(place)) >= 3 and not set(normalise(country).split()) <= set(normalise(place).split())


def _some(country: str, places: Sequence[str]) -> list[str]:
    found = list({normalise(place): place for place in places}.values())
    return found if len(found) <= _A_COUNTRY else random.Random(country).sample(found, _A_COUNTRY)


_LEVELS = ("Continent", "Part", "Country")
GEOGRAPHY_CONTINENT = ClassificationTask(
    "geography-continent", "widest", table, "Place: {text}\nWhich continent is it in?", _LEVELS
)
GEOGRAPHY_COUNTRY = ClassificationTask("geography-country", "narrowest", table, "Place: {text}\nWhich country is it in?", _LEVELS)
GEOGRAPHY = Mixture("geography", (GEOGRAPHY_CONTINENT, GEOGRAPHY_COUNTRY))
