"""A line that is fair between keys, by tokens and not by requests."""

from __future__ import annotations

from service.fair_line import FairLine, PriorityLine


def drawn(line: FairLine[str], count: int = 100) -> str:
    found = [line.next() for _ in range(min(count, len(line)))]
    return "".join(item or "?" for item in found)


def line_of(entries: list[tuple[str, int, str]], quantum: int = 10) -> FairLine[str]:
    line = FairLine[str](quantum)
    for key, tokens, item in entries:
        line.add(key, tokens, item)
    return line


def test_one_keys_requests_keep_their_order() -> None:
    assert drawn(line_of([("a", tokens, item) for tokens, item in ((30, "1"), (1, "2"), (10, "3"))])) == "123"


def test_a_flood_of_one_key_does_not_move_anothers_turn() -> None:
    flood = [("a", 10, "a")] * 50
    late = [("b", 10, "B")]
    assert drawn(line_of(flood + late)).index("B") == 1
    assert drawn(line_of(flood * 20 + late)).index("B") == 1


def test_keys_get_equal_tokens_and_not_equal_requests() -> None:
    line = line_of([("a", 40, "A")] * 10 + [("b", 10, "b")] * 40)
    order = drawn(line, 25)
    assert order.count("A") * 40 == order.count("b") * 10


def test_small_requests_pass_a_large_one_of_another_key() -> None:
    assert drawn(line_of([("a", 100, "A"), *[("b", 10, "b")] * 3])) == "bbbA"


def test_nobody_saves_up_credit_by_not_asking() -> None:
    line = line_of([("a", 10, "a"), *[("b", 10, "b")] * 30])
    drawn(line, 15)  # a is long gone
    for _ in range(10):
        line.add("a", 10, "a")
    assert drawn(line, 8).count("a") == 4


def test_who_gives_up_leaves_the_line() -> None:
    line = FairLine[list[str]](10)
    one, two = ["x"], ["x"]
    line.add("a", 10, one)
    line.add("a", 10, two)
    line.remove("a", one)
    line.remove("never", one)
    assert len(line) == 1 and line.next() is two and line.next() is None


def test_a_key_whose_last_request_gives_up_has_no_turn() -> None:
    line = line_of([("a", 10, "A"), ("b", 10, "B")])
    line.remove("a", "A")
    assert drawn(line) == "B" and line.next() is None
    line.add("a", 10, "again")
    assert line.next() == "again"


def test_what_a_turn_cost_is_paid() -> None:
    line = line_of([("a", 10, "a")] * 3 + [("b", 10, "b")] * 3)
    assert drawn(line) == "ababab"


def test_the_smaller_priority_goes_first_and_within_one_keys_take_turns() -> None:
    line = PriorityLine[str]()
    for priority, key, item in ((0, "a", "1"), (5, "a", "later"), (0, "a", "3"), (0, "b", "2")):
        line.add(priority, key, 512, item)
    assert line.first == "1"
    line.add(-1, "c", 512, "before")
    found = []
    while (first := line.first) is not None:
        found.append(first)
        line.take()
    assert found == ["before", "1", "2", "3", "later"]


def test_who_gave_up_waiting_has_no_turn_whatever_its_priority() -> None:
    line = PriorityLine[str]()
    for item in ("1", "2", "3"):
        line.add(-9, "c", 1, item)
    assert line.first == "1"
    for item in ("1", "3", "3"):
        line.remove(-9, "c", item)
    assert line.first == "2"
    line.take()
    line.remove(-9, "c", "2")
    assert line.first is None
