"""`graftline keys`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from registry.home import home_directory
from registry.names import current_actor
from service.audit import AuditLog
from service.caller import Quota, Scope
from service.keys import Key, KeyRefused, KeyStore

_SPAN = re.compile(r"([1-9][0-9]{0,4})([dh])")


def create(
    name: str, scopes: tuple[str, ...], expires: str | None, quota: Mapping[str, int | None], home: Path | None, as_json: bool
) -> None:
    place = home_directory(home)
    named, ends = tuple(map(_scope, scopes)), None if expires is None else _moment(expires, datetime.now(UTC))
    with AuditLog(place).by_user("key.create", name, current_actor()) as act:
        made = KeyStore(place).create(name, named, Quota.model_validate(quota), ends)
        act.detail = {"id": made.key.id, "scopes": [*made.key.scopes]}
    if as_json:
        print(json.dumps({**_told(made.key), "secret": made.secret}))
    else:
        print(f"{made.secret}\n\nThat is the only time that the secret of {name} ({made.key.id}) is shown. {_limits(made.key)}")


def list_keys(home: Path | None, as_json: bool) -> None:
    keys = KeyStore(home_directory(home)).all()
    if as_json:
        print(json.dumps([_told(key) for key in keys]))
    elif not keys:
        print("No key was made: the service lets in everybody on its own machine. `graftline keys create NAME` changes that.")
    else:
        width = max(len(key.name) for key in keys)
        for key in keys:
            print(f"{key.id}  {key.name:{width}}  {key.state(datetime.now(UTC)):7}  {_limits(key)}")


def revoke(reference: str, home: Path | None, as_json: bool) -> None:
    place = home_directory(home)
    with AuditLog(place).by_user("key.revoke", reference, current_actor()) as act:
        key = KeyStore(place).revoke(reference)
        act.detail = {"id": key.id}
    print(json.dumps(_told(key)) if as_json else f"{key.name} ({key.id}) opens nothing any more.")


def _scope(text: str) -> Scope:
    try:
        return Scope(text)
    except ValueError as error:
        raise KeyRefused(f"A scope is one of {', '.join(Scope)}, but got {text!r}. Give --scope once for each.") from error


def _moment(text: str, now: datetime) -> datetime:
    """When a key ends: a span from now, or the beginning of a day or moment in UTC."""
    span = _SPAN.fullmatch(text)
    if span is not None:
        return now + (timedelta(days=int(span[1])) if span[2] == "d" else timedelta(hours=int(span[1])))
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise KeyRefused(f"A key ends after a span or at a date, but got {text!r}. Try 90d, 12h or 2027-06-30.") from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _told(key: Key) -> dict[str, object]:
    """All but the digest."""
    return {**key.model_dump(mode="json", exclude={"digest"}), "state": key.state(datetime.now(UTC))}


def _limits(key: Key) -> str:
    quota = {name.replace("_", " "): value for name, value in key.quota.model_dump().items() if value is not None}
    ends = [] if key.expires_at is None else [f"until {key.expires_at:%Y-%m-%d %H:%M} UTC"]
    return "; ".join([f"may {', '.join(key.scopes)}", *(f"{name} {value}" for name, value in quota.items()), *ends])
