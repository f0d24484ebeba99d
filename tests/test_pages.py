"""The bank's pages: nobody gets a page of another's, the longest idle leaves, and those in use can be brought together."""

from __future__ import annotations

import random

from engine.pages import Pages, pages_for


def test_a_rank_takes_whole_pages() -> None:
    assert [pages_for(rank) for rank in (0, 1, 8, 9, 16, 64)] == [1, 1, 1, 2, 2, 8]


def test_pages_are_the_lowest_that_are_free_and_never_page_0() -> None:
    pages = Pages(max_pages=10, max_names=9)
    for name, count in (("a", 2), ("b", 1), ("c", 3)):
        pages.take(name, count, ())
    assert [pages.of(name) for name in ("a", "b", "c", "absent")] == [(1, 2), (3,), (4, 5, 6), ()]
    pages.give("a")
    pages.take("d", 3, ())
    assert pages.of("d") == (1, 2, 7)


def test_who_is_idle_longest_leaves_when_the_pages_are_used_up() -> None:
    pages = Pages(max_pages=5, max_names=9)
    for name in ("a", "b", "c", "d"):
        pages.take(name, 1, ())
    pages.use("a")
    assert pages.take("e", 2, keep=("b",)) == ["c", "d"]
    assert list(pages) == ["b", "a", "e"]


def test_the_number_of_adapters_is_bounded_too() -> None:
    pages = Pages(max_pages=100, max_names=2)
    pages.take("a", 1, ())
    pages.take("b", 1, ())
    assert not pages.has_room(1, keep=("a", "b")) and pages.has_room(1, keep=("a",))
    assert pages.take("c", 1, keep=("a",)) == ["b"]


def test_no_room_is_said_before_anybody_leaves() -> None:
    pages = Pages(max_pages=4, max_names=9)
    pages.take("a", 2, ())
    assert not pages.has_room(2, keep=("a",)) and pages.has_room(3, keep=())
    assert list(pages) == ["a"]


def test_pages_in_use_are_brought_together_where_they_lie_far_apart() -> None:
    pages = Pages(max_pages=100, max_names=99)
    for number in range(10):
        pages.take(str(number), 1, ())
    assert pages.gathered(["0", "3"]) == {}  # four pages for two: near enough
    before = {name: pages.of(name) for name in pages}
    moves = pages.gathered(["9", "2"])
    assert {pages.of("9"), pages.of("2")} == {(1,), (2,)}
    assert all(pages.of(name) == tuple(moves.get(page, page) for page in before[name]) for name in pages)


def test_no_page_is_ever_two_adapters_own() -> None:
    chance, pages = random.Random(0), Pages(max_pages=12, max_names=6)
    for _ in range(2000):
        name, count = chance.choice("abcdefghij"), chance.randint(1, 4)
        keep = [other for other in pages if chance.random() < 0.4]
        if name in pages:
            pages.give(name)
        elif pages.has_room(count, keep):
            gone = pages.take(name, count, keep)
            assert not set(gone) & set(keep)
        pages.gathered(chance.sample(list(pages), len(pages) // 2))
        owned = [page for other in pages for page in pages.of(other)]
        assert len(owned) == len(set(owned)) and all(0 < page < 12 for page in owned) and len(pages) <= 6
