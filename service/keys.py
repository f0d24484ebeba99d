"""API keys: a secret that is shown once, and a file in the home directory that holds only its SHA-256."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.whole_file import written_whole
from service.caller import Caller, Quota, Scope

KEYS = "keys.json"
CLOSED = "keys.closed"  # stands beside it once a key was made
_SECRET = re.compile(r"graftline-([0-9a-f]{8})-([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_NO_DIGEST = "0" * 64


class KeyRefused(ValueError):
    """A key that cannot be made or revoked as asked."""


class KeysUnreadable(RuntimeError):
    """The file of keys is damaged or others may write it: nobody is let in."""


class KeysGone(KeysUnreadable):
    """Keys were made, and there are none: taking their file away opens nothing."""


class InvalidKey(Exception):
    """A secret that opens nothing; the text says why, without the secret."""


class Key(BaseModel):
    """`digest` is the SHA-256 of the whole secret. It has 256 random bits: no slower hash would make it harder to guess."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    digest: str
    scopes: tuple[Scope, ...] = Field(min_length=1)
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    quota: Quota = Quota()

    @property
    def caller(self) -> Caller:
        return Caller(self.id, self.name, frozenset(self.scopes), self.quota)

    def state(self, now: datetime) -> str:
        """valid, revoked or expired."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "valid"


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...]


class NewKey(NamedTuple):
    key: Key
    secret: str


@dataclass(frozen=True)
class _Read:
    """The file as it was when it had this identity; every writing gives it another."""

    identity: tuple[int, int, int]
    by_id: dict[str, Key]


class KeyStore:
    """Reads the file again whenever it has changed: what another process made or revoked holds for the next request."""

    def __init__(self, home: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.file, self._closed = home / KEYS, home / CLOSED
        self._now = now
        self._read: _Read | None = None

    def all(self) -> tuple[Key, ...]:
        """In the order of their making, revoked ones among them; empty when none was ever made."""
        return tuple(self._by_id().values())

    def create(self, name: str, scopes: tuple[Scope, ...], quota: Quota, expires_at: datetime | None = None) -> NewKey:
        """The secret is nowhere else: whoever loses it makes another key."""
        if not _NAME.fullmatch(name):
            rule = "A key's name has at most 64 letters, digits and the marks _ . : -, and begins with a letter or digit"
            raise KeyRefused(f"{rule}, but got {name!r}. Try support-bot.")
        if not scopes:
            raise KeyRefused(f"A key without a scope opens nothing. Give one or more of {', '.join(Scope)}.")
        if expires_at is not None and expires_at <= self._now():
            raise KeyRefused(f"A key must end in the future, but {expires_at:%Y-%m-%d %H:%M} UTC is over. Give a later time.")
        with self._changing() as keys:
            if any(key.name == name and key.state(self._now()) == "valid" for key in keys):
                way_out = f"Take another name, or revoke it first: graftline keys revoke {name}"
                raise KeyRefused(f"A name belongs to one valid key, but there is one called {name!r}. {way_out}")
            taken = {key.id for key in keys}
            key_id = next(found for found in iter(lambda: secrets.token_hex(4), None) if found not in taken)
            secret = f"graftline-{key_id}-{secrets.token_urlsafe(32)}"
            key = Key(
                id=key_id,
                name=name,
                digest=_digest(secret),
                scopes=tuple(dict.fromkeys(scopes)),
                created_at=self._now(),
                expires_at=expires_at,
                quota=quota,
            )
            keys.append(key)
        return NewKey(key, secret)

    def revoke(self, reference: str) -> Key:
        """By id, or by the name of a key that is not revoked. It stays in the list, for the audit log's sake."""
        with self._changing() as keys:
            found = [place for place, key in enumerate(keys) if reference in (key.id, key.name) and key.revoked_at is None]
            if not found:
                known = ", ".join(f"{key.name} ({key.id})" for key in keys if key.revoked_at is None) or "none"
                raise KeyRefused(f"There is no key {reference!r} that could be revoked. There are: {known}.")
            place = found[-1]
            keys[place] = keys[place].model_copy(update={"revoked_at": self._now()})
            return keys[place]

    def holder(self, secret: str) -> Caller:
        """Whose secret it is; InvalidKey where nobody's, or the key's time is over."""
        named = _SECRET.fullmatch(secret)
        key = self._by_id().get(named[1]) if named else None
        # The same comparison with or without such a key: time tells nothing.
        is_right = hmac.compare_digest(_digest(secret), key.digest if key is not None else _NO_DIGEST)
        if key is None or not is_right:
            raise InvalidKey("The API key is not one of this server's.")
        state = key.state(self._now())
        if state != "valid":
            raise InvalidKey(f"The API key {key.name!r} ({key.id}) is {state}.")
        return key.caller

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """What is done to the list is written at the end, whole; one process at a time."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read = None
            keys = list(self._stored().values())
            yield keys
            self.stay_closed()
            text = _File(keys=tuple(keys)).model_dump_json(indent=1)
            with written_whole(self.file) as part:
                opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(opened, "w") as out:
                    out.write(text + "\n")
                    out.flush()
                    os.fsync(out.fileno())
            self._read = None

    def stay_closed(self) -> None:
        """From now on a file of keys that is gone lets nobody in, whoever looks for it."""
        if not self._closed.exists():
            self._closed.touch(0o600)

    def _by_id(self) -> dict[str, Key]:
        found = self._stored()
        if not found and self._closed.exists():
            raise KeysGone(
                f"Keys were made here, but {KEYS} holds none any more. Bring back a copy of it, or make a key with "
                f"`graftline keys create NAME`. For none on purpose, remove {CLOSED} from the home and start the server anew."
            )
        return found

    def _stored(self) -> dict[str, Key]:
        try:
            found = os.stat(self.file)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise KeysUnreadable(f"The file of keys cannot be read ({error.strerror}). Correct its rights.") from error
        identity = (found.st_ino, found.st_mtime_ns, found.st_size)
        if self._read is None or self._read.identity != identity:
            if found.st_mode & 0o022:
                raise KeysUnreadable(
                    f"Only its owner may write the file of keys, but others may write {KEYS}. Run chmod 600 on it."
                )
            try:
                keys = _File.model_validate_json(self.file.read_bytes()).keys
            except (ValidationError, OSError) as error:
                way_out = "Bring back a copy of it, or take it away and make new keys"
                raise KeysUnreadable(f"The file of keys must be as `graftline keys` wrote it, but is not. {way_out}.") from error
            self._read = _Read(identity, {key.id: key for key in keys})
        return self._read.by_id


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()
