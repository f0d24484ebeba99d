"""Places in texts that a backbone has read: the token at each, the kind of text it stands in, and one layer's state there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.backbone import Backbone
from adapters.whole_file import written_whole
from engine.engine import Continuation, Engine, GenerationRequest
from engine.errors import EngineError
from engine.inspect import NOT_HERE, inspector
from evaluation.errors import DataError, UnreadableFile
from evaluation.task import Example, reasoning_prompt

# Legend: N places, H hidden

QUESTION, CHAIN, TEXT = range(3)  # what is asked, what the backbone wrote, and other text
KINDS = ("question", "chain", "text")
OUTLIER = 10.0  # times the median length: the states of the first token and of some marks, which no feature should be spent on
HELD_OUT = 10  # every so-many-th text is trained on by nothing


@dataclass(frozen=True)
class Places:
    """In reading order within a text. `states_NH` is bfloat16 and `text_N` counts the texts from 0."""

    ids_N: Tensor
    kind_N: Tensor
    text_N: Tensor
    states_NH: Tensor

    def __len__(self) -> int:
        return len(self.ids_N)

    def __getitem__(self, chosen: Tensor) -> Places:
        """By a mask or by indices."""
        return Places(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @property
    def chains(self) -> Places:
        return self[self.kind_N == CHAIN]

    @property
    def usual(self) -> Places:
        """Without the outliers: places whose state is far longer than the median one."""
        norms_N = torch.cat([chunk_NH.float().norm(dim=-1) for chunk_NH in self.states_NH.split(8192)])
        return self[norms_N <= OUTLIER * norms_N.median()]

    @property
    def trained(self) -> Places:
        return self[self.text_N % HELD_OUT != HELD_OUT - 1]

    @property
    def held_out(self) -> Places:
        return self[self.text_N % HELD_OUT == HELD_OUT - 1]

    def counts(self) -> dict[str, int]:
        """Places by kind."""
        return {name: int((self.kind_N == kind).sum()) for kind, name in enumerate(KINDS)}

    def texts(self) -> Iterator[Tensor]:
        """The indices of the places of each text in turn."""
        _, counts = self.text_N.unique_consecutive(return_counts=True)
        yield from torch.arange(len(self)).split(counts.tolist())

    def save(self, file: Path) -> None:
        with written_whole(file) as part:
            save_file({field.name: getattr(self, field.name).contiguous() for field in fields(self)}, part)

    @classmethod
    def load(cls, file: Path) -> Places:
        try:
            stored = load_file(file)
            return cls(*(stored[field.name] for field in fields(cls)))
        except (OSError, KeyError, SafetensorError) as error:
            raise UnreadableFile(
                f"{file} is no whole shard of places ({error!r}). Delete it: the harvest makes it again."
            ) from error

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        """One after the other, texts counted on."""
        first, texts = 0, list[Tensor]()
        for part in parts:
            texts.append(part.text_N + first)
            first += int(part.text_N.max()) + 1
        found = [torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)]
        return cls(found[0], found[1], torch.cat(texts), found[3])


def own_chains(engine: Engine, backbone: Backbone, examples: Sequence[Example], max_new_tokens: int) -> list[Continuation]:
    """What the backbone writes greedily, without the token that ends it; replies of less than two tokens are left out."""
    prompts = [backbone.chat_ids(reasoning_prompt(example)) for example in examples]
    requests = [GenerationRequest(ids, None, max_new_tokens=max_new_tokens, temperature=0.0) for ids in prompts]
    found = list[Continuation]()
    for prompt, reply in zip(prompts, engine.complete(requests), strict=True):
        ids = reply.token_ids[:-1] if reply.token_ids and reply.token_ids[-1] in backbone.stop_ids else reply.token_ids
        if len(ids) > 1:
            found.append(Continuation(prompt, tuple(ids)))
    return found


def read_places(engine: Engine, texts: Sequence[Sequence[tuple[int, int]]], layer: int) -> Places:
    """Texts are (token, kind) in order. All places but each text's first, whose state is of another size in most models."""
    looking = inspector(engine)
    if looking is None:
        raise EngineError(f"States cannot be harvested: {NOT_HERE}.")
    if not texts:
        raise DataError("Places are read from one text or more, but got none. Name other tasks.")
    asked = [Continuation((text[0][0],), tuple(token for token, _ in text[1:])) for text in texts]
    states = looking.hidden_states(asked, [None] * len(asked), [layer])
    states_NH = torch.cat([found[0, 1:] for found in states]).to(torch.bfloat16)
    ids_N, kind_N = (torch.tensor([pair[part] for text in texts for pair in text[1:]]) for part in (0, 1))
    text_N = torch.tensor([number for number, text in enumerate(texts) for _ in text[1:]])
    return Places(ids_N, kind_N, text_N, states_NH)
