"""Names: what a registered model may be called, and what NAME, NAME@ALIAS and NAME@VERSION mean."""

from __future__ import annotations

import getpass
import os
import re
from dataclasses import dataclass
from pathlib import Path

from registry.errors import DamagedRelease, NoChampion, RefusedName, UnknownRelease
from registry.tracking import Tracking

LEDGER_SUFFIX = ".releases"
CHAMPION, CANDIDATE = "champion", "candidate"
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what MLflow says of a version or alias that is unknown
_REFUSED = "/:@%'\""  # what MLflow refuses, or reads as syntax, and the mark before a version
_VERSION = re.compile(r"v?([1-9][0-9]*)")


@dataclass(frozen=True)
class ReleaseName:
    """One version of one registered model; `str()` gives NAME@VERSION."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def checked_name(name: str) -> str:
    """The name itself, or RefusedName."""
    if any(mark in name for mark in _REFUSED) or not name.strip() or name != name.strip():
        raise RefusedName(
            f"A model name is not empty and holds none of {' '.join(_REFUSED)}, but got {name!r}. Try medicine.coding."
        )
    if name.endswith(LEDGER_SUFFIX):
        raise RefusedName(
            f"A model name must not end in {LEDGER_SUFFIX!r}, which marks ledgers, but got {name!r}. Drop the ending."
        )
    return name


def refuse_backbone_name(name: str, backbone: str) -> None:
    """RefusedName where requests for the name would mean the backbone. A folder is asked for by the last part of its path."""
    place = Path(backbone).expanduser()
    if name in (backbone, place.name if place.exists() else backbone):
        raise RefusedName(
            f"A model must not have the name of its own backbone, which answers under it, but got {name!r}. Try {name}.tuned."
        )


def ledger_name(name: str) -> str:
    return checked_name(name) + LEDGER_SUFFIX


def resolve(tracking: Tracking, reference: str) -> ReleaseName:
    """NAME is the ledger's champion, NAME@VERSION (3 or v3) that version, NAME@ALIAS what the alias points to.

    `NAME@champion` is the ledger's champion too: the alias alone passed no gate. DamagedRelease where its files were exchanged.
    """
    from mlflow.exceptions import MlflowException

    from registry.ledger import Ledger

    name, _, selector = reference.partition("@")
    checked_name(name)
    if not selector and "@" in reference:
        raise RefusedName(f"After '@' comes a version or an alias, but got {reference!r}. Leave out the '@' for the champion.")
    if selector in ("", CHAMPION):
        ledger = Ledger(tracking, name)
        try:
            champion = ReleaseName(name, ledger.champion_version())
        except NoChampion as error:
            if name in registered_names(tracking):
                raise
            raise unknown_release(tracking, reference) from error  # what does not exist cannot be promoted
        if (sentence := ledger.exchanged()) is not None:
            raise DamagedRelease(sentence)
        return champion
    matched = _VERSION.fullmatch(selector)
    with tracking.client() as client:
        try:
            if matched:
                return ReleaseName(name, int(client.get_model_version(name, matched[1]).version))
            return ReleaseName(name, int(client.get_model_version_by_alias(name, selector).version))
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            raise unknown_release(tracking, reference) from error


def unknown_release(tracking: Tracking, reference: str) -> UnknownRelease:
    """The error, with the names that do exist."""
    known = registered_names(tracking)
    listed = ", ".join(known[:8]) or "none yet"
    return UnknownRelease(
        f"A release is NAME, NAME@VERSION or NAME@ALIAS of a registered model, but {reference!r} is not there "
        f"(models: {listed}). Correct the name (`graftline status` shows versions and aliases), or make it: "
        "`graftline tune RECIPE.toml`, then `graftline publish STUDY`."
    )


def registered_names(tracking: Tracking) -> list[str]:
    """Every registered model that is not a ledger, sorted."""
    names: list[str] = []
    with tracking.client() as client:
        token: str | None = None
        while True:
            page = client.search_registered_models(max_results=100, page_token=token)
            names.extend(model.name for model in page if not model.name.endswith(LEDGER_SUFFIX))
            token = page.token or None
            if token is None:
                return sorted(set(names))  # a name that is made meanwhile moves others to the next page


def current_actor() -> str:
    """Who acts: $GRAFTLINE_ACTOR, which a service sets for whom it acts, else the user of this process."""
    if named := os.environ.get("GRAFTLINE_ACTOR"):
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
