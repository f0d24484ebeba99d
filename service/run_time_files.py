"""An adapter that is named by a directory: found inside the allowed one, copied, and checked before a weight is read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from adapters.backbone import BUILT_IN, Backbone
from adapters.errors import AdapterError, DamagedAdapter
from adapters.files import kind_of
from adapters.lora import CONFIG, PREFIX, WEIGHTS, is_named
from adapters.safetensors_header import StoredTensor, read_header
from engine.profile import PROFILE, Profile
from registry.errors import DamagedRelease
from registry.manifest import CARD, MANIFEST, TRAINING, read_manifest, verify, verify_tensors
from service.errors import ApiError
from service.lease import served_id

PATH = "lora_path"
_SMALL = {CONFIG: 2**20, MANIFEST: 16 * 2**20, PROFILE: 2**20, TRAINING: 256 * 2**20, CARD: 16 * 2**20}
_A, _B = ".lora_A.weight", ".lora_B.weight"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Limits:
    """What an adapter may be at most."""

    max_bytes: int
    max_rank: int


def refused(status: int, code: str, message: str) -> ApiError:
    return ApiError(status, message, code, PATH)


@contextmanager
def private_copy(allowed: Path, path: str, scratch: Path, limits: Limits) -> Iterator[Path]:
    """The adapter's files, copied: what is checked is what is loaded, whoever writes to the directory meanwhile.

    `path` is relative to the allowed directory, or absolute and inside it. Every part of it is opened without following links.
    """
    copy = scratch / "adapter"
    try:
        copy.mkdir(parents=True)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        with _opened(allowed, path) as folder:
            _copy(folder, copy, path, limits)
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def checked_profile(copy: Path, backbone: Backbone, limits: Limits, named: str) -> Profile:
    """The profile of a plain LoRA. ApiError, each fault with a code of its own; no sentence holds a path of this server."""
    _check_backbone(copy, backbone, named)
    try:
        header = read_header(copy / WEIGHTS)
    except DamagedAdapter as error:
        raise refused(400, "header_damaged", str(error)) from error
    config = _config(copy, named)
    if not (copy / MANIFEST).is_file():
        _check_named_backbone(config, backbone, named)
    _check_rank(header, config, limits, named)
    _check_modules(header, config, backbone, named)
    try:
        verify_tensors(copy)
    except DamagedRelease as error:
        raise refused(400, "weights_not_finite", _without(copy, named, str(error))) from error
    try:
        profile = Profile.load(copy)
    except AdapterError as error:
        raise refused(400, "adapter_refused", _without(copy, named, str(error))) from error
    if [kind_of(adapter) for adapter in profile.adapters] != ["lora"] or profile.routing is not None:
        raise refused(400, "adapter_refused", f"What is loaded by a path is one LoRA, but {named!r} is not. Publish it instead.")
    return profile


@contextmanager
def _opened(allowed: Path, path: str) -> Iterator[int]:
    """A descriptor of the directory. Links inside the allowed directory are resolved first, and none is followed after that."""
    root = allowed.resolve()
    if "\0" in path:
        raise refused(400, "path_not_allowed", f"A {PATH} holds no character NUL, but got {path!r}. Leave it out.")
    if ".." in Path(path).parts:
        raise refused(
            400, "path_not_allowed", f"A {PATH} holds no '..', but got {path!r}. Name a directory inside the allowed one."
        )
    try:
        place = (root / path).resolve()
        parts = place.relative_to(root).parts
    except (ValueError, OSError, RuntimeError) as error:
        raise refused(
            400,
            "path_not_allowed",
            f"A {PATH} is a release NAME@VERSION, or a directory inside the one that the operator allowed, but {path!r} leads "
            "out of it. Publish the adapter, or copy it there.",
        ) from error
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    with ExitStack() as opened:
        try:
            folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, folder)
            for part in parts:
                folder = os.open(part, flags, dir_fd=folder)
                opened.callback(os.close, folder)
            yield folder
        except OSError as error:
            raise unreadable(path, error) from error


def _copy(folder: int, copy: Path, path: str, limits: Limits) -> None:
    found = os.listdir(folder)
    if WEIGHTS not in found:
        if pickles := sorted(name for name in found if name.endswith(_PICKLES)):
            message = f"Weights come as safetensors, but {path!r} has {pickles[0]}, which may run code. Save it as safetensors."
            raise refused(400, "not_safetensors", message)
        raise refused(404, "adapter_not_found", f"An adapter's directory holds {WEIGHTS}, but {path!r} has none. Check the path.")
    if CONFIG not in found:
        raise refused(400, "config_missing", f"An adapter's directory holds {CONFIG}, but {path!r} has none. Save it again.")
    for name in (WEIGHTS, *_SMALL):
        if name in found:
            _copy_file(folder, name, copy / name, _SMALL.get(name, limits.max_bytes), path)


def _copy_file(folder: int, name: str, target: Path, max_bytes: int, path: str) -> None:
    # Not blocking: opening a FIFO would wait for its writer.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as source, target.open("wb") as written:
        if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
            raise refused(400, "not_a_file", f"{name} of {path!r} must be a plain file, but is none. Save the adapter again.")
        left = max_bytes + 1
        while left and (block := source.read(min(left, 2**20))):
            written.write(block)
            left -= len(block)
    if not left:
        message = f"{name} may have {max_bytes} bytes, but that of {path!r} has more. Fit a smaller adapter, or raise the limit."
        raise refused(413, "adapter_too_large", message)


def unreadable(path: str, error: OSError) -> ApiError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return refused(404, "adapter_not_found", f"There is no adapter directory {path!r}. Check the path.")
        case errno.ELOOP:
            return refused(
                400, "path_not_allowed", f"A {PATH} is reached without links, but {path!r} is not. Copy the files there."
            )
        case errno.ENOSPC:
            message = f"The server has no room for a copy of {path!r} now. Ask again later."
            return ApiError(507, message, "no_room", PATH, "server_error", {"x-should-retry": "false"})
        case _:
            reason = error.strerror or "it failed"
            return refused(400, "adapter_unreadable", f"The files of {path!r} cannot be read ({reason}). Correct their rights.")


def _check_backbone(copy: Path, backbone: Backbone, named: str) -> None:
    """Where a manifest states what the adapter was fitted on, and which files it has, they must be these."""
    if not (copy / MANIFEST).is_file():
        return
    try:
        stated = read_manifest(copy)
        if stated.profile.adapters != ("lora",):
            kinds = ", ".join(stated.profile.adapters) or "a policy alone"
            message = f"What is loaded by a path is one LoRA, but {named!r} is {kinds}. Publish it, and load NAME@VERSION."
            raise refused(400, "adapter_refused", message)
        if stated.backbone.fingerprint != backbone.fingerprint:
            raise refused(
                400,
                "backbone_mismatch",
                f"{named!r} was fitted on a backbone with the fingerprint {stated.backbone.fingerprint[:12]}, but this one has "
                f"{backbone.fingerprint[:12]}. Serve that backbone, or fit it again.",
            )
        verify(copy)
    except DamagedRelease as error:
        raise refused(400, "manifest_damaged", _without(copy, named, str(error))) from error


def _check_named_backbone(config: Mapping[str, object], backbone: Backbone, named: str) -> None:
    """A built-in backbone's name means one set of weights; the two have the same shapes, so that nothing else tells them apart.

    Any other name is a hub's id or a path of whoever fitted it: the same weights have many, and the modules' shapes decide.
    """
    stated = config.get("base_model_name_or_path")
    if stated in BUILT_IN and stated != backbone.name:
        message = f"{named!r} was fitted on {stated!r} by its {CONFIG}, but this backbone is {served_id(backbone.name)!r}."
        raise refused(400, "backbone_mismatch", f"{message} Serve that backbone, or fit it again.")


def _config(copy: Path, named: str) -> Mapping[str, object]:
    try:
        config = json.loads((copy / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        message = f"{CONFIG} must be JSON, but that of {named!r} is not ({error}). Save the adapter again."
        raise refused(400, "config_damaged", message) from error
    if not isinstance(config, dict) or str(config.get("peft_type", "")).upper() != "LORA":
        given = config.get("peft_type") if isinstance(config, dict) else config
        message = f"What is loaded by a path is one LoRA, but {named!r} has the peft_type {given!r}. Publish it instead."
        raise refused(400, "adapter_refused", message)
    return config


def _check_rank(header: Mapping[str, StoredTensor], config: Mapping[str, object], limits: Limits, named: str) -> None:
    said = config.get("r")
    ranks = {name: one.shape[0] for name, one in header.items() if name.endswith(_A) and one.shape}
    largest = max([*ranks.values(), said if type(said) is int else 0], default=0)
    if largest > limits.max_rank:
        message = f"A rank is at most {limits.max_rank} here, but {named!r} has {largest}. Fit a lower one, or raise the limit."
        raise refused(400, "rank_too_large", message)
    for name, rank in ranks.items():
        if rank != said:
            message = f"{CONFIG} of {named!r} says rank {said!r}, but {name} has {rank}. Save the adapter again."
            raise refused(400, "rank_differs", message)


def _check_modules(header: Mapping[str, StoredTensor], config: Mapping[str, object], backbone: Backbone, named: str) -> None:
    """Every tensor is the A or B of a linear layer of the backbone, in its shape, and every targeted layer has both."""
    modules = backbone.model.named_modules()
    layers = {id(one) for layer in backbone.layers for one in layer.modules()}
    linears = {path: one for path, one in modules if isinstance(one, nn.Linear) and id(one) in layers}
    for name, stored in header.items():
        path = name.removeprefix(PREFIX).removesuffix(_A).removesuffix(_B)
        if not name.startswith(PREFIX) or not name.endswith((_A, _B)) or path not in linears:
            message = (
                f"A LoRA updates linear layers of the backbone, but {named!r} has weights for {name!r}. Fit it on this backbone."
            )
            raise refused(400, "module_unknown", message)
        linear, rank = linears[path], config.get("r")
        expected = (rank, linear.in_features) if name.endswith(_A) else (linear.out_features, rank)
        if stored.shape != expected:
            message = (
                f"{name} must have the shape {list(expected)} on this backbone, but that of {named!r} has {list(stored.shape)}."
            )
            raise refused(400, "shape_differs", f"{message} Fit it on this backbone.")
    for path in _targeted(config, linears, named):
        for ending in (_A, _B):
            if f"{PREFIX}{path}{ending}" not in header:
                message = f"Every targeted layer has its A and B, but {named!r} lacks {path}{ending}. Save or download it again."
                raise refused(400, "tensors_missing", message)
    if not header:
        raise refused(400, "tensors_missing", f"An adapter has weights, but {named!r} has none. Save or download it again.")


def _targeted(config: Mapping[str, object], linears: Mapping[str, nn.Linear], named: str) -> Iterator[str]:
    """Paths that the config says are adapted. What a pattern means is not asked: it would be a stranger's regular expression."""
    targets, layers, excluded = (config.get(name) for name in ("target_modules", "layers_to_transform", "exclude_modules"))
    if isinstance(targets, str) and targets != "all-linear":
        message = f"target_modules is a list of names or 'all-linear', but that of {named!r} is {targets!r}. Write it out."
        raise refused(400, "modules_by_pattern", message)
    if isinstance(excluded, str) and excluded:
        message = f"exclude_modules is a list of names, but that of {named!r} is {excluded!r:.80}. Write it out."
        raise refused(400, "modules_by_pattern", message)
    names, without = (tuple(str(one) for one in given) if isinstance(given, list) else () for given in (targets, excluded))
    chosen = layers if isinstance(layers, list) else None if layers is None else [layers]
    if not all(type(one) is int for one in chosen or ()):
        message = f"layers_to_transform holds numbers of layers, but that of {named!r} is {layers!r:.80}. Save it again."
        raise refused(400, "config_damaged", message)
    for path in linears:
        number = next((int(part) for part in path.split(".") if part.isdigit()), None)
        if (chosen is not None and number not in chosen) or is_named(path, without):
            continue
        if targets == "all-linear" or is_named(path, names):
            yield path


def _without(copy: Path, named: str, message: str) -> str:
    """The sentence with the adapter's name where the copy's path stood."""
    with suppress(OSError):
        message = message.replace(str(copy.resolve()), named)
    return message.replace(str(copy), named)
