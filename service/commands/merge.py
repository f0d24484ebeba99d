"""`graftline merge` and `graftline reduce-intruders`: a new adapter directory out of releases, ready for `graftline publish`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adapters.spec import Spec
from registry.home import home_directory
from registry.manifest import MANIFEST, Manifest
from service.elsewhere import elsewhere

if TYPE_CHECKING:
    from adapters.backbone import Backbone
    from adapters.merge import IntruderSpec
    from tuning.merging import Parents

S = TypeVar("S", bound=Spec)


def merge(
    named: Sequence[str],
    out: Path,
    settings: dict[str, Any],
    name: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    from adapters.merge import MergeSpec
    from tuning.merging import merge as merge_into

    spec = _checked(MergeSpec, settings)
    parents, backbone = _parents(named, home, tracking_uri)
    _tell(merge_into(parents, backbone, spec, out, name), out, elsewhere(home_directory(home), tracking_uri), as_json)


def reduce_intruders(
    named: str,
    out: Path,
    settings: dict[str, Any],
    name: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    from adapters.merge import IntruderSpec
    from tuning.merging import reduce_intruders as reduce_into

    spec = _checked(IntruderSpec, settings)
    parents, backbone = _parents([named], home, tracking_uri)
    written = reduce_into(parents, backbone, spec, out, name)
    if written is None:
        _tell_none(named, spec, as_json)
        return
    intruders = written.derived["intruders"]
    assert isinstance(intruders, dict)
    if not as_json:
        print(f"{len(intruders)} modules had intruder dimensions")
    _tell(written, out, elsewhere(home_directory(home), tracking_uri), as_json)


def _tell_none(named: str, spec: IntruderSpec, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"directory": None, "derived": {"intruders": {}}}))
    else:
        print(
            f"{named} has no intruder dimensions: of the {spec.top_k} strongest of each weight none has a cosine below "
            f"{spec.threshold:g} to all frozen ones. Nothing was written."
        )


def _checked(kind: type[S], settings: dict[str, Any]) -> S:
    from pydantic import ValidationError

    from tuning.errors import BadRecipe
    from tuning.faults import in_one_sentence

    try:
        return kind(**settings)
    except ValidationError as error:
        raise BadRecipe(in_one_sentence(error, of="merge")) from error


def _parents(named: Sequence[str], home: Path | None, tracking_uri: str | None) -> tuple[Parents, Backbone]:
    from adapters.backbone import Backbone
    from service.commands.subject import files_of
    from tuning.errors import BadRecipe
    from tuning.gating import Subject
    from tuning.merging import Parents

    place, subjects = home_directory(home), []
    for reference in named:
        directory, manifest = files_of(reference, place, tracking_uri)
        if manifest is None:
            raise BadRecipe(
                f"An adapter is joined by what its {MANIFEST} says of its backbone and data, but {reference} has none. "
                "Fit it with `graftline tune`."
            )
        subjects.append(Subject(reference, directory, manifest))
    backbone = Backbone.load(subjects[0].manifest.backbone.name)  # its own weights, which those of a fit in 4 bits only stand for
    return Parents.of(subjects, backbone), backbone


def _tell(written: Manifest, out: Path, more: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"directory": str(out), "derived": written.derived}))
    else:
        print(f"adapter: {out}\nnext: graftline publish {out}{more}")
