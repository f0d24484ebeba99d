"""Which databases workers on other machines can use."""

from __future__ import annotations

from registry.database_url import Address, shown
from tuning.errors import BadStorage
from tuning.executors.executor import WorkerCommand

_HERE = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0")
_HOSTED = ("databricks", "databricks-uc")  # MLflow knows where


def require_many_hosts(command: WorkerCommand, where: str) -> None:
    """Raises BadStorage where workers on several machines could not share the study's or the runs' database."""
    _require("A study", command.storage, where, "--storage postgresql+psycopg://USER@HOST/DATABASE")
    if command.tracking_uri is None:
        raise BadStorage(
            f"Workers on several machines ({where}) need one place for their runs, but without --tracking-uri those are in an "
            "SQLite file in the home. Give the URI of an MLflow server: --tracking-uri http://HOST:5000."
        )
    _require("A tracking store", command.tracking_uri, where, "--tracking-uri http://HOST:5000")


def _require(what: str, url: str, where: str, way_out: str) -> None:
    """Refuses files, and hosts that are another one on every machine."""
    if url in _HOSTED:
        return
    parts = Address.of(url)
    if parts.scheme.partition("+")[0] in ("sqlite", "file", ""):
        raise BadStorage(
            f"{what} in a file is of one machine: SQLite loses its locks on shared file systems. But {shown(url)} is to be "
            f"shared by workers on several ({where}). Move it to a server: {way_out}; or stay here: --executor local."
        )
    here = [host for host in parts.hosts if host in _HERE or host.startswith("/")]
    if here:
        raise BadStorage(
            f"Every machine takes {here[0] or 'no host'!r} for itself, but {shown(url)} is to be shared by workers on several "
            f"({where}). Name the server as the others reach it: {way_out}."
        )
