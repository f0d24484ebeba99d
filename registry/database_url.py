"""The URL of a database: its hosts, and what in it nobody is to read."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qs

_SECRET_WORDS = ("password", "token", "secret")
HIDDEN = "***"


class Address(NamedTuple):
    """Cut at the last @: a password may hold any sign, and is to be found whatever it holds."""

    scheme: str
    credentials: str
    hosts: tuple[str, ...]
    path: str
    query: str

    @classmethod
    def of(cls, url: str) -> Address:
        scheme, _, rest = url.partition("://")
        credentials, _, place = rest.rpartition("@")
        place, _, query = place.partition("?")
        hosts, slash, path = place.partition("/")
        named = parse_qs(query).get("host", []) if scheme.startswith("postgresql") and not hosts else []
        every = tuple(_host(address) for address in ",".join(named or [hosts]).split(","))
        return cls(scheme if rest else "", credentials, every, slash + path, query)


def has_secret(url: str | None) -> bool:
    """Whether the URL lets in whoever reads it."""
    if url is None:
        return False
    parts = Address.of(url)
    return ":" in parts.credentials or any(map(_is_secret, parts.query.split("&")))


def shown(url: str) -> str:
    """The URL for a message: without its password."""
    scheme, slashes, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    place, mark, query = place.partition("?")
    words = [f"{word.partition('=')[0]}={HIDDEN}" if _is_secret(word) else word for word in query.split("&")]
    return f"{scheme}{slashes}{user}{colon}{HIDDEN if colon else ''}{at}{place}{mark}{'&'.join(words)}"


def _host(address: str) -> str:
    """Without its port."""
    if address.startswith("["):
        return address[1:].partition("]")[0].lower()
    return address.partition(":")[0].lower()


def _is_secret(word: str) -> bool:
    """Of `key=value` in a query."""
    return any(name in word.partition("=")[0].lower() for name in _SECRET_WORDS)
