"""Earlier domains: what other names already serve on the same backbone, and a new release must not make it worse at."""

from __future__ import annotations

from collections.abc import Mapping

from registry.errors import NoChampion, PromotionRefused, UnknownRelease
from registry.ledger import Ledger
from registry.manifest import Manifest
from registry.names import ReleaseName, registered_names
from registry.policy import domain_name
from registry.release import load_release
from registry.tracking import Tracking


def earlier_domains(
    tracking: Tracking, name: str, fingerprint: str, domain: str, task: str | None = None
) -> Mapping[str, ReleaseName]:
    """By the domain as its recipe names it (a built-in task or a TOML): a champion that serves it, names in their order.

    Champions of other backbones, of the name itself and of the same domain are none, and so are those of a task of the name
    `task`: a domain that new rows were added to is in another file, and the same one.
    """
    found: dict[str, ReleaseName] = {}
    for other in registered_names(tracking):
        if other == name:
            continue
        try:
            version = Ledger(tracking, other).champion_version()
        except NoChampion:
            continue
        try:
            champion = load_release(tracking, other, version)
        except UnknownRelease as error:
            raise PromotionRefused(
                f"A gate protects what other names serve, but {other}@{version}, the champion of {other}, was deleted. "
                f"`graftline doctor {other}` says how to go on."
            ) from error
        served = _domain(champion.manifest)
        if task is not None and domain_name(champion.manifest.task) == task:
            continue
        if champion.manifest.backbone.fingerprint == fingerprint and served not in (None, domain):
            assert served is not None
            found.setdefault(served, champion.full_name)
    return found


def _domain(manifest: Manifest) -> str | None:
    found = manifest.recipe.get("domain")
    return found if isinstance(found, str) else None
