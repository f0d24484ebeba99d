"""Words that are added to a registered model, each in a tag of its own: of two who add at once both stay.

A tag of a registered model holds 5,000 characters on PostgreSQL, and MLflow has no compare-and-set of one: a list in one tag
would end there, and lose what another process added in between.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


def added(tags: Mapping[str, str], prefix: str) -> list[tuple[str, str]]:
    """Tags and words, oldest first. Those that were added at once stand in one order for every reader."""
    numbered = re.compile(rf"{re.escape(prefix)}\.(\d{{6,}})-[0-9a-f]+")
    found = [(int(matched[1]), tag, text) for tag, text in tags.items() if (matched := numbered.fullmatch(tag))]
    return [(tag, text) for _, tag, text in sorted(found)]


def add(client: MlflowClient, name: str, prefix: str, text: str) -> None:
    """After all that are there. By a number and not by a clock: those of two machines may differ."""
    there = added(client.get_registered_model(name).tags, prefix)
    last = int(there[-1][0].removeprefix(f"{prefix}.").partition("-")[0]) if there else 0
    client.set_registered_model_tag(name, f"{prefix}.{last + 1:06d}-{secrets.token_hex(4)}", text)
