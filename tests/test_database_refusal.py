"""A database that lets nobody in is told from one that is away for a while, by the words of PostgreSQL and its poolers."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from tuning.database_refusal import refusal
from tuning.errors import BadStorage, StorageAway
from tuning.storage import StudyStorage

_AT = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '
REFUSED = (
    'FATAL:  password authentication failed for user "me"',
    'FATAL:  role "me" does not exist',
    'FATAL:  database "studies" does not exist',
    'FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "me", database "studies", no encryption',
    'FATAL:  role "me" is not permitted to log in',
    'FATAL:  permission denied for database "studies"\nDETAIL:  User does not have CONNECT privilege.',
    "fe_sendauth: no password supplied",
    "FATAL:  no such database: studies",
    "server does not support SSL, but SSL was required",
)
AWAY = (
    "FATAL:  the database system is starting up",
    "FATAL:  the database system is shutting down",
    "FATAL:  the database system is in recovery mode",
    "FATAL:  sorry, too many clients already",
    'FATAL:  too many connections for role "me"',
    "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
    "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?",
    "timeout expired",
    "server closed the connection unexpectedly",
    "[Errno -2] Name or service not known",
)


def said(words: str) -> OperationalError:
    return OperationalError("", {}, Exception(_AT + words))


@pytest.mark.parametrize("words", REFUSED)
def test_who_is_not_let_in_is_refused_with_the_servers_words_and_without_the_password(tmp_path: Path, words: str) -> None:
    error = StudyStorage.of(tmp_path, "one", "postgresql://me:secret@127.0.0.1/studies").away(said(words))
    assert isinstance(error, BadStorage) and "--storage" in str(error)
    assert words.splitlines()[0].removeprefix("FATAL:").strip() in str(error) and "secret" not in str(error)


@pytest.mark.parametrize("words", AWAY)
def test_an_outage_is_waited_for(tmp_path: Path, words: str) -> None:
    assert isinstance(StudyStorage.of(tmp_path, "one", "postgresql://me@127.0.0.1/studies").away(said(words)), StorageAway)


def test_what_no_database_said_is_no_refusal() -> None:
    assert refusal(ValueError("password authentication failed")) is None
