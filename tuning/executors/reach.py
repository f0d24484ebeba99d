"""Which databases workers on other machines can use, and which URLs hold what nobody is to read."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qs

from tuning.errors import OneHostOnly
from tuning.executors.executor import WorkerCommand

_HERE = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0")
_HOSTED = ("databricks", "databricks-uc")  # MLflow knows where
_SECRET_WORDS = ("password", "token", "secret")
HIDDEN = "***"


class _Parts(NamedTuple):
    """Cut at the last @: a password may hold any sign, and is to be found whatever it holds."""

    scheme: str
    credentials: str
    hosts: tuple[str, ...]
    path: str
    query: str

    @classmethod
    def of(cls, url: str) -> _Parts:
        scheme, _, rest = url.partition("://")
        credentials, _, place = rest.rpartition("@")
        place, _, query = place.partition("?")
        hosts, slash, path = place.partition("/")
        named = parse_qs(query).get("host", []) if scheme.startswith("postgresql") and not hosts else []
        every = tuple(_host(address) for address in ",".join(named or [hosts]).split(","))
        return cls(scheme if rest else "", credentials, every, slash + path, query)


def require_many_hosts(command: WorkerCommand, where: str) -> None:
    """Raises OneHostOnly where workers on several machines could not share the study's or the runs' database."""
    _require("A study", command.storage, where, "--storage postgresql+psycopg://USER@HOST/DATABASE")
    if command.tracking_uri is None:
        raise OneHostOnly(
            f"Workers on several machines ({where}) need one place for their runs, but without --tracking-uri those are in an "
            "SQLite file in the home. Give the URI of an MLflow server: --tracking-uri http://HOST:5000."
        )
    _require("A tracking store", command.tracking_uri, where, "--tracking-uri http://HOST:5000")


def _require(what: str, url: str, where: str, way_out: str) -> None:
    """Refuses files, and hosts that are another one on every machine."""
    if url in _HOSTED:
        return
    parts = _Parts.of(url)
    if parts.scheme.partition("+")[0] in ("sqlite", "file", ""):
        raise OneHostOnly(
            f"{what} in a file is of one machine: SQLite loses its locks on shared file systems. But {shown(url)} is to be "
            f"shared by workers on several ({where}). Move it to a server: {way_out}; or stay here: --executor local."
        )
    here = [host for host in parts.hosts if host in _HERE or host.startswith("/")]
    if here:
        raise OneHostOnly(
            f"Every machine takes {here[0] or 'no host'!r} for itself, but {shown(url)} is to be shared by workers on several "
            f"({where}). Name the server as the others reach it: {way_out}."
        )


def has_secret(url: str | None) -> bool:
    """Whether the URL lets in whoever reads it."""
    if url is None:
        return False
    parts = _Parts.of(url)
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
