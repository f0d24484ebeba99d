"""Votes over several chains."""

from __future__ import annotations

from engine.decoding.cot_decoding import Branch
from engine.decoding.vote import Ballot, length_filtered_vote, weighted_vote


def ballots(*given: tuple[str, int]) -> list[Ballot]:
    return [Ballot(answer, 1.0, steps) for answer, steps in given]


def test_equal_answers_add_their_weights() -> None:
    given = [Ballot("7", 0.5, 1), Ballot("9", 0.8, 1), Ballot("7.", 0.4, 1)]
    assert weighted_vote(given, str) == "9"
    assert weighted_vote(given, lambda answer: answer.rstrip(".")) == "7"
    assert weighted_vote([], str) == ""


def test_only_the_lengths_at_which_the_chains_agree_vote() -> None:
    short = ballots(("a", 2), ("a", 3), ("a", 2))
    long = ballots(("b", 8), ("b", 8), ("b", 9), ("c", 8), ("d", 9), ("b", 9))
    assert weighted_vote(long + short, str) == "b"
    assert length_filtered_vote(long + short, str, num_bins=1) == "a"
    assert length_filtered_vote(long + short, str, num_bins=2) == "b"


def test_a_chain_alone_in_its_bin_does_not_outrank_many_that_agree() -> None:
    # Both bins have no entropy at all.
    assert length_filtered_vote(ballots(("x", 20), ("a", 2), ("a", 3)), str, num_bins=1) == "a"


def test_a_wider_bin_joins_neighbouring_lengths() -> None:
    given = ballots(("a", 1), ("a", 2), ("b", 3), ("b", 4), ("b", 5))
    assert length_filtered_vote(given, str, steps_per_bin=2, num_bins=1) == "b"
    assert length_filtered_vote(given, str, steps_per_bin=1, num_bins=2) == "a"


def test_the_vote_among_lengths_counts_chains_and_not_how_sure_they_are() -> None:
    assert length_filtered_vote([Ballot("a", 0.1, 2), Ballot("a", 0.2, 2), Ballot("b", 0.9, 3)], str) == "a"


def test_a_branch_counts_its_lines_as_steps() -> None:
    assert Branch("one\n\ntwo\n", "7", 0.5).ballot == Ballot("7", 0.5, 2)
    assert Branch("cut in a l", "7", 0.5).text == "cut in a l\nAnswer: 7"
