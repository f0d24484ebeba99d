"""Where a study is kept: in an SQLite file of one machine, or in a PostgreSQL that workers on any machine share.

Optuna's own loop records heartbeats, but ends at the first connection that is lost; here a database that is away for a while is
waited for, so that a trial of an hour outlives its restart.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from registry.database_url import Address, shown
from tuning.database_refusal import refusal
from tuning.errors import BadStorage, StorageAway, StorageRefused
from tuning.kernel import boot_id

ENVIRONMENT = "GRAFTLINE_STORAGE"
BEAT_S = 20  # between two heartbeats of a trial; after three without one it is given up and tried again
PATIENCE_S = 600.0  # that a database may be away before its worker gives up
# User attributes of a study in a file: the name of the machine that the file is on, and that kernel's start.
HOST_KEY, BOOT_KEY = "host", "boot"
_TRIES = 5  # at making the tables: several workers may be the first
_PAUSES = (0.2, 5.0)  # s, first and longest


@dataclass(frozen=True)
class StudyStorage:
    """`beat_s`: whole seconds between heartbeats. `patience_s`: see PATIENCE_S."""

    url: str
    beat_s: int = BEAT_S
    patience_s: float = PATIENCE_S

    @classmethod
    def of(cls, home: Path, name: str, url: str | None = None) -> StudyStorage:
        """The URL that is given, else $GRAFTLINE_STORAGE, else a file in the home. BadStorage for what no sweep can use."""
        named = url or os.environ.get(ENVIRONMENT) or f"sqlite:///{home / 'studies' / name / 'optuna.db'}"
        return cls(_checked(named))

    @property
    def is_shared(self) -> bool:
        """Whether workers of several machines may use it."""
        return self.file is None

    @property
    def file(self) -> Path | None:
        path = make_url(self.url).database
        return Path(str(path)) if self.url.startswith("sqlite") else None

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return shown(self.url)

    def open(self, on_stale: Callable[[optuna.Study, optuna.trial.FrozenTrial], None] | None = None) -> PatientStorage:
        """Makes missing tables. StorageAway when no database answers, StorageRefused when it does not let us in."""
        given: dict[str, Any] = {
            "heartbeat_interval": self.beat_s,
            "grace_period": 3 * self.beat_s,
            "heartbeat_stale_trial_callback": on_stale,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna's heartbeats
            return self._opened(given)

    def _opened(self, given: dict[str, Any]) -> PatientStorage:
        if self.file is not None:
            if not self.file.parent.is_dir():
                raise BadStorage(
                    f"A study is kept in {self.file}, but there is no folder {self.file.parent}. Make it, or correct --storage."
                )
            return PatientStorage(0.0, self.url, engine_kwargs={"connect_args": {"timeout": 60}}, **given)
        # A sweep asks seldom: a connection that is kept would be lost with every restart, and many workers would use up all.
        engine = {"poolclass": NullPool, "connect_args": {"connect_timeout": 10}}
        for attempt in range(_TRIES):
            try:
                return PatientStorage(self.patience_s, self.url, engine_kwargs=engine, **given)
            except (SQLAlchemyError, StorageInternalError) as error:
                if is_away(error) or attempt == _TRIES - 1:
                    raise self.away(error) from error
                time.sleep(0.2 * (attempt + 1))  # another worker makes the same tables
        raise AssertionError

    def away(self, error: BaseException) -> StorageAway | StorageRefused:
        """StorageAway for what is worth waiting for."""
        if (said := refusal(error)) is not None:
            return StorageRefused(
                f"A sweep needs a database that lets it in, but {self.shown} refuses: {said.rstrip('.')}. Correct user, password "
                f"or database in --storage or ${ENVIRONMENT}, or make them on the server; what was tried is kept."
            )
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        return StorageAway(
            f"A sweep needs the database of its study, but {self.shown} does not serve it ({reason}). Start it, or correct "
            f"--storage or ${ENVIRONMENT}; what was tried is kept."
        )

    def refuse_other_host(self, study: optuna.Study) -> None:
        """A file is for the processes of one machine: BadStorage on another one."""
        if self.file is None:
            return
        host, boot = socket.gethostname(), boot_id()
        made_on = study.user_attrs.get(HOST_KEY)
        # Containers of one machine differ in their names, and share its kernel.
        if made_on not in (None, host) and (boot is None or study.user_attrs.get(BOOT_KEY) != boot):
            raise BadStorage(
                f"SQLite serves the workers of one machine, but the study {study.study_name!r} in {self.file} was made on "
                f"{made_on!r} and this is {host!r}. Sweep on several machines with PostgreSQL: "
                f"--storage postgresql+psycopg://USER@HOST/DATABASE. Where this machine got another name, or the file was moved "
                f"to it, say so: graftline sweep adopt {study.study_name}."
            )
        for key, now in ((HOST_KEY, host), (BOOT_KEY, boot)):
            if now is not None and study.user_attrs.get(key) != now:
                study.set_user_attr(key, now)

    def adopt(self, study: optuna.Study, storage: PatientStorage) -> None:
        """This machine has the file from now on. BadStorage while a trial of another one is heard, and for no file."""
        if self.file is None:
            raise BadStorage(
                f"A study in a file is of one machine, but that of {study.study_name!r} is in {self.shown}, which serves any. "
                "Start workers on it as it is."
            )
        if heard := storage.heard(study._study_id):
            raise BadStorage(
                f"SQLite serves the workers of one machine, but {heard} trials of the study {study.study_name!r} run on "
                f"{study.user_attrs.get(HOST_KEY)!r}. End its workers first; one that was killed counts as gone after "
                f"{3 * self.beat_s} s."
            )
        study.set_user_attr(HOST_KEY, socket.gethostname())

    def refuse_shared_with(self, tracking_uri: str) -> None:
        """Optuna and MLflow both keep their version in a table of the same name: one database cannot serve both."""
        if self.file is None and _place(self.url) == _place(tracking_uri):
            raise BadStorage(
                f"Study and registry need databases of their own, but both are in {self.shown}. Make a second database, say "
                "CREATE DATABASE optuna, and name it with --storage."
            )


class PatientStorage(RDBStorage):
    """Waits for a database that is away, up to `patience_s`, then raises what it said."""

    def __init__(self, patience_s: float, *args: Any, **kwargs: Any) -> None:
        self._patience_s = 0.0  # who opens it is told at once
        self._silent_since: dict[tuple[int, object], float] = {}  # by trial and its last heartbeat, which was late then already
        super().__init__(*args, **kwargs)
        self._patience_s = patience_s

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """To be given up: those that missed their heartbeats while this process could have heard them.

        The database's clock alone does not tell: after an outage, or where a machine slept, every trial is late by it.
        """
        late, last = self.unheard(study_id), self._last_beats(study_id)
        now, beat, grace = time.monotonic(), float(self.heartbeat_interval or 0), float(self.grace_period or 0)
        # One that never had a heartbeat lost its worker, or the connection, between its making and the first one.
        silent = [told for told in last.items() if told[1] is None or told[0] in late]
        self._silent_since = {told: self._silent_since.get(told, now) for told in silent}
        waited = {told: now - since for told, since in self._silent_since.items()}
        return [trial for (trial, heartbeat), s in waited.items() if s > (grace if heartbeat is None else 2 * beat)]

    def _last_beats(self, study_id: int) -> dict[int, object]:
        """Of the trials that run; None where one never had a heartbeat."""
        query = (
            "SELECT trials.trial_id, trial_heartbeats.heartbeat FROM trials LEFT JOIN trial_heartbeats "
            "ON trial_heartbeats.trial_id = trials.trial_id WHERE trials.study_id = :study AND trials.state = 'RUNNING'"
        )
        with self.engine.connect() as connection:
            return {int(row[0]): row[1] for row in connection.execute(sqlalchemy.text(query), {"study": study_id})}

    def heard(self, study_id: int) -> int:
        """How many trials run whose last heartbeat is within the grace period."""
        late = self.unheard(study_id)
        return sum(beat is not None and trial not in late for trial, beat in self._last_beats(study_id).items())

    def unheard(self, study_id: int) -> list[int]:
        """Trials whose last heartbeat is older than the grace period, by the clock of the database."""
        return super()._get_stale_trial_ids(study_id)


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def waiting(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        until, pause, lost = time.monotonic() + self._patience_s, _PAUSES[0], False
        while True:
            try:
                return method(self, *args, **kwargs)
            except UpdateFinishedTrialError:
                if lost:  # the first call arrived, and only its answer was lost; or the trial was given up meanwhile
                    return True
                raise
            except (SQLAlchemyError, StorageInternalError) as error:
                if not is_away(error) or time.monotonic() >= until:
                    raise
                lost = True
                self._silent_since.clear()  # nobody's heartbeats arrive meanwhile
                time.sleep(pause)
                pause = min(2 * pause, _PAUSES[1])

    return waiting


# All that a sweep asks of a storage. Not the heartbeat: a late one is worth nothing, the next one comes by itself.
for _name in (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "create_new_trial",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "get_all_trials",
    "_get_trials",
    "get_n_trials",
    "_get_stale_trial_ids",
    "unheard",
):
    setattr(PatientStorage, _name, _patient(getattr(PatientStorage, _name)))


@contextmanager
def beating(storage: RDBStorage, trial: optuna.Trial) -> Iterator[None]:
    """Records that the trial is alive while this block runs. A beat that the database did not take is followed by the next."""
    over = threading.Event()
    every = storage.get_heartbeat_interval() or BEAT_S

    def beat() -> None:
        while True:
            with suppress(SQLAlchemyError, StorageInternalError, KeyError):
                storage.record_heartbeat(trial._trial_id)
            if over.wait(every):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def is_away(error: BaseException) -> bool:
    """Whether the database could not be reached, or ended the connection; not what it refused."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OperationalError | InterfaceError) or (isinstance(seen, DBAPIError) and seen.connection_invalidated):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _checked(url: str) -> str:
    """With the driver that comes with the extra `postgres`, where none is named."""
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        url = f"postgresql+psycopg://{rest}"
    if not url.startswith(("sqlite:///", "postgresql+")):
        raise BadStorage(
            f"A study is kept in sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE, but got {shown(url)!r}. Leave it out "
            "to use a file in the home."
        )
    # The driver would take what follows the first @ for a host, and name it.
    if not url.startswith("sqlite") and "@" in Address.of(url).credentials:
        raise BadStorage(f"A password in a URL is percent-encoded, but that of {shown(url)!r} has a plain @. Write %40 for it.")
    try:
        address = make_url(url)
        address.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:  # ValueError: a port that is no number
        raise BadStorage(f"{shown(url)!r} is not the URL of a database. Try postgresql+psycopg://USER@HOST/DATABASE.") from error
    except ImportError as error:
        raise BadStorage(
            f"A study on {url.partition(':')[0]} needs its driver, but {error}. Install it: pip install 'graftline[postgres]'."
        ) from error
    if url.startswith("sqlite") and address.database in (None, "", ":memory:"):
        raise BadStorage(f"A study is kept in a file, but {url!r} names none, and is gone with its process. Try sqlite:///FILE.")
    return url


def _place(url: str) -> tuple[str, str | None, int | None, str]:
    address = urlsplit(url)
    return address.scheme.partition("+")[0], address.hostname, address.port or 5432, address.path
