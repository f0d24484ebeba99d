"""Voting: a profile with several sets of soft thoughts writes a reply under each, and the majority of their answers is taken.

SoftCoT++'s decoding (Xu et al. 2025, arXiv 2505.11484). What is returned is one of the replies, whole: the first that gives the
elected answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from engine.decoding.answer import ANSWER_CUE, first_answer, said
from engine.decoding.vote import Ballot, weighted_vote
from engine.engine import Completion, Delta, GenerationRequest


def voters_of(request: GenerationRequest, num_chains: int) -> list[GenerationRequest]:
    """One request a set of thoughts; itself where it names a set, or where its replies hold no answer to vote with."""
    has_answer = not request.begun_ids and request.grammar is None and not any(text in ANSWER_CUE for text in request.stop)
    if num_chains == 1 or request.chain is not None or not has_answer:
        return [request]
    return [replace(request, chain=chain) for chain in range(num_chains)]


def elected(completions: Sequence[Completion]) -> Completion:
    return completions[winner([completion.text for completion in completions])]


async def elected_stream(streams: Sequence[AsyncGenerator[Delta, None]]) -> list[Delta]:
    """The deltas of the elected reply, once all are written; a cancellation ends every stream."""
    writing = [asyncio.create_task(_collected(stream)) for stream in streams]
    try:
        written = await asyncio.gather(*writing)
    finally:
        for task in writing:
            task.cancel()
    return written[winner(["".join(delta.text for delta in deltas) for deltas in written])]


def winner(texts: Sequence[str]) -> int:
    """Which reply is taken: of equally many votes the earlier answer's, and the first where none answers."""
    answers = [first_answer(text) or "" for text in texts]
    return answers.index(weighted_vote([Ballot(answer, 1.0) for answer in answers if answer], said)) if any(answers) else 0


async def _collected(stream: AsyncGenerator[Delta, None]) -> list[Delta]:
    async with aclosing(stream):
        return [delta async for delta in stream]
