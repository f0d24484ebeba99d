"""Places and the countries that they are in: what is read of countryinfo, and what is asked of it."""

from collections import Counter

from evaluation.tasks import geography
from evaluation.tasks.definition import definition
from evaluation.tasks.geography import CONTINENTS, GEOGRAPHY, GEOGRAPHY_CONTINENT, GEOGRAPHY_COUNTRY


def test_the_table_holds_thousands_of_places_of_two_hundred_countries_and_few_of_each() -> None:
    places = Counter(leaf.path[2] for leaf in geography.table().leaves)
    assert sum(places.values()) > 2_500 and len(places) > 200
    assert max(places.values()) <= 24


def test_bavaria_is_in_germany() -> None:
    bavaria = next(leaf for leaf in geography.table().leaves if leaf.text == "Bayern")
    assert bavaria.path == ("Europe", "Western Europe", "Germany")
    assert bavaria.code == "DEU/bayern"


def test_a_place_of_two_countries_is_never_asked() -> None:
    names = {leaf.text for leaf in geography.table().leaves}
    assert "San Jose" not in names and "Saint Andrew" not in names  # of Costa Rica and Uruguay; of half of the Caribbean


def test_no_place_holds_the_name_of_its_country() -> None:
    for leaf in geography.table().leaves:
        assert not set(leaf.path[2].lower().split()) <= set(leaf.text.lower().split())


def test_a_continent_is_asked_among_all_and_a_country_among_those_of_its_continent() -> None:
    for example in GEOGRAPHY_CONTINENT.examples("search", 40):
        assert example.choices is not None and sorted(example.choices) == sorted(CONTINENTS.values())
    for example in GEOGRAPHY_COUNTRY.examples("search", 40):
        continent = example.steps[0].removeprefix("Continent: ")
        assert example.choices is not None and 4 <= len(example.choices) <= 6
        assert set(example.choices) <= set(geography.table().narrow_titles[continent])


def test_what_is_held_out_are_places_of_countries_that_were_taught() -> None:
    taught = {example.answer for example in GEOGRAPHY_COUNTRY.examples("train", 2000)}
    asked = GEOGRAPHY_COUNTRY.examples("select", 200)
    assert sum(example.answer in taught for example in asked) / len(asked) > 0.8


def test_a_manifest_names_the_package_that_holds_the_places() -> None:
    assert "countryinfo" in definition(GEOGRAPHY)["packages"]  # type: ignore[operator]
