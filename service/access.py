"""Who is let in: with keys, whoever has one; without any, only this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from service.caller import ANYONE, Caller
from service.errors import ApiError
from service.keys import InvalidKey, KeyStore, KeysUnreadable
from service.scopes import Rule

log = logging.getLogger("graftline.access")
_CHALLENGE = 'Bearer realm="graftline"'


class OpenToAll(ValueError):
    """A server without keys that others could reach."""


class Access:
    """Once a key was made this server asks for one, whatever becomes of the file."""

    def __init__(self, keys: KeyStore, is_open: bool = False, has_open_metrics: bool = False) -> None:
        self._keys, self._is_open, self._has_open_metrics = keys, is_open, has_open_metrics
        self._asks = False

    def leaves_open(self, rule: Rule) -> bool:
        """Whether a setting opens what the table closes."""
        return self._has_open_metrics and rule.path == "/metrics"

    @property
    def asks_for_keys(self) -> bool:
        self._asks = self._asks or bool(self._keys.all())
        return self._asks

    def announce(self) -> None:
        """Says in the log when there is nothing to keep anybody out."""
        try:
            if self.asks_for_keys:
                with contextlib.suppress(OSError):  # a home that nobody may write
                    self._keys.stay_closed()
                return
        except KeysUnreadable as error:
            log.error("Nobody is let in: %s", error)
            return
        whom = "Everybody who reaches this server" if self._is_open else "Everybody on this machine"
        log.warning("%s may do everything: no key was made. `graftline keys create NAME` closes it.", whom)

    def caller(self, connection: HTTPConnection) -> Caller:
        """ApiError 401, 403 or 503 where nobody is let in."""
        try:
            if self.asks_for_keys:
                return self._keys.holder(_bearer(connection))
        except InvalidKey as error:
            challenge = {"www-authenticate": f'{_CHALLENGE}, error="invalid_token"'}
            message = f"{error} Send Authorization: Bearer KEY with a key that `graftline keys create` made."
            raise ApiError(401, message, "invalid_api_key", headers=challenge) from error
        except KeysUnreadable as error:
            log.error("Nobody is let in: %s", error)
            message = "This server cannot read its keys, so it lets nobody in. Its log has the reason."
            raise ApiError(503, message, "keys_unreadable", None, "server_error") from error
        if not self._is_open:
            _refuse_from_elsewhere(connection)
        return ANYONE


def refuse_open(host: str, home: Path, is_open: bool) -> None:
    """OpenToAll where the address is reached from elsewhere and no key was made, unless that is wanted."""
    if is_open or ipaddress.ip_address(host).is_loopback or KeyStore(home).all():
        return
    raise OpenToAll(
        f"A server on {host} can be reached by others, so it needs keys, but none was made in {home}. Make one with "
        "`graftline keys create NAME --scope complete`, listen on 127.0.0.1, or pass --open to let everybody in."
    )


def _bearer(connection: HTTPConnection) -> str:
    kind, _, secret = connection.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not secret.strip():
        message = "This server asks for a key. Send Authorization: Bearer KEY with a key that `graftline keys create` made."
        raise ApiError(401, message, "invalid_api_key", headers={"www-authenticate": _CHALLENGE})
    return secret.strip()


def _refuse_from_elsewhere(connection: HTTPConnection) -> None:
    """Without keys only this machine is let in: by the address that was dialled, and by the names that a browser would send.

    The names keep out a page of another site that was made to look local (DNS rebinding), and a proxy that serves others.
    """
    server = connection.scope.get("server")
    if server is None or not _is_address(server[0]):
        return  # a socket file, or a test without a network
    names = [server[0], _host_of(f"//{connection.headers.get('host', '')}")]
    if (origin := connection.headers.get("origin")) is not None:
        names.append(_host_of(origin))
    for name in names:
        if name is None or not (name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)):
            message = (
                f"This server has no keys, so it answers only this machine, but was asked as {name!r}. Make keys with "
                "`graftline keys create NAME`, or set GRAFTLINE_OPEN=true to let everybody in."
            )
            raise ApiError(403, message, "keys_needed")


def _host_of(url: str) -> str | None:
    """None where it names no host."""
    try:
        return urlsplit(url).hostname
    except ValueError:  # a bracket that is not closed, say
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
