"""Tracking: runs and their numbers in MLflow, addressed by run id, with no state but the store's own."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import psutil

from adapters.whole_file import whole_directory
from registry.database_url import shown
from registry.errors import NoRegistry, RegistryUnreachable, StoreRefused

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRACKING_VARIABLE = "GRAFTLINE_TRACKING_URI"
PROCESS_TAG = "graftline.process"  # of a run: HOST/PID@SECONDS, when the process began, in seconds since 1970
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
CONNECT_TIMEOUT_S = 5.0
# MLflow retries for minutes by default; whoever waits at a terminal wants the sentence instead.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # commands print JSON there
}
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
_MAX_PARAMS, _MAX_METRICS = 100, 1000


@dataclass(frozen=True)
class Tracking:
    """One MLflow store. `artifact_root` is None where a server decides; `cache` keeps downloaded releases."""

    uri: str
    artifact_root: str | None
    cache: Path

    @classmethod
    def at(cls, home: Path, uri: str | None = None) -> Tracking:
        """The one at `uri`, else at $GRAFTLINE_TRACKING_URI, else the home's own (`mlflow.db` and `artifacts/` in it).

        The cache is in the home.
        """
        home, uri = home.expanduser().absolute(), uri or os.environ.get(TRACKING_VARIABLE)
        if not uri or uri == store_in(home):
            return cls(store_in(home), str(home / "artifacts"), home / "releases")
        served = urlsplit(uri).scheme in ("http", "https")
        return cls(uri, None if served else str(home / "artifacts"), home / "releases")

    @property
    def is_missing(self) -> bool:
        """Whether the store is an SQLite file that is not there yet: whoever only reads need not make it."""
        if not self.uri.startswith("sqlite:"):
            return False
        try:
            _sqlite_file(self.uri).stat()
        except FileNotFoundError:
            return True
        return False

    def existing(self) -> Tracking:
        """Itself, or NoRegistry where there is none: a mistyped home is not to be made."""
        if self.is_missing:
            raise NoRegistry(
                f"Releases are in a registry, but there is none in {shown(self.uri)} yet. Check --home, or start with "
                "`graftline tune RECIPE.toml`."
            )
        return self

    def create(self) -> Tracking:
        """Makes the store where there is none, and proves that it answers. Call it before starting other processes."""
        with self.client() as client:
            client.search_experiments(max_results=1)
        return self

    @contextmanager
    def client(self) -> Iterator[MlflowClient]:
        """MLflow's client for a few calls. It fails as a RegistryError: the store is out of reach, or refused one."""
        _ensure_reachable(self.uri)
        try:
            mlflow_client = _client(self.uri)
        except Exception as error:
            raise _unreachable(self.uri, _first_line(error)) from error
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
        from urllib3.exceptions import HTTPError

        try:
            yield mlflow_client
        except MlflowException as error:
            if is_lost_connection(error):
                raise _unreachable(self.uri, _first_line(error)) from error
            raise StoreRefused(f"MLflow at {shown(self.uri)} refused a call: {_first_line(error)}") from error
        except (OSError, SQLAlchemyError, HTTPError) as error:
            raise _unreachable(self.uri, _first_line(error)) from error

    def experiment(self, name: str) -> str:
        """The id of the experiment, made when missing."""
        from mlflow.exceptions import MlflowException

        with self.client() as client:
            found = client.get_experiment_by_name(name)
            if found is None:
                location = None if self.artifact_root is None else f"{self.artifact_root}/{_folder(name)}"
                try:
                    return str(client.create_experiment(name, artifact_location=location))
                except MlflowException:  # another process was first
                    found = client.get_experiment_by_name(name)
                    if found is None:
                        raise
            return str(found.experiment_id)

    def start_run(self, experiment: str, name: str, *, parent: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """The id of a new run in the named experiment; with `parent`, a child of that run, from any process."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

        every_tag = {PROCESS_TAG: _this_process(), **(tags or {}), MLFLOW_RUN_NAME: name}
        if parent is not None:
            every_tag[MLFLOW_PARENT_RUN_ID] = parent
        experiment_id = self.experiment(experiment)
        with self.client() as client:
            return str(client.create_run(experiment_id, run_name=name, tags=every_tag).info.run_id)

    def start_child(self, parent: str, name: str, *, tags: Mapping[str, str] | None = None) -> str:
        """The id of a new run below that one, in its experiment."""
        with self.client() as client:
            experiment = client.get_experiment(client.get_run(parent).info.experiment_id).name
        return self.start_run(str(experiment), name, parent=parent, tags=tags)

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        entries = [Param(key, str(value)) for key, value in params.items()]
        with self.client() as client:
            for start in range(0, len(entries), _MAX_PARAMS):
                client.log_batch(run_id, params=entries[start : start + _MAX_PARAMS])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        entries = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        with self.client() as client:
            for start in range(0, len(entries), _MAX_METRICS):
                client.log_batch(run_id, metrics=entries[start : start + _MAX_METRICS])

    def set_tags(self, run_id: str, tags: Mapping[str, object]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(key, str(value)) for key, value in tags.items()]
        with self.client() as client:
            for start in range(0, len(entries), _MAX_PARAMS):
                client.log_batch(run_id, tags=entries[start : start + _MAX_PARAMS])

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """One file, or a directory with all that is in it."""
        with self.client() as client:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), folder)
            else:
                client.log_artifact(run_id, str(path), folder)

    def log_dict(self, run_id: str, value: Mapping[str, object], file: str) -> None:
        with self.client() as client:
            client.log_dict(run_id, dict(value), file)

    def log_text(self, run_id: str, text: str, file: str) -> None:
        with self.client() as client:
            client.log_text(run_id, text, file)

    def downloaded(self, run_id: str, folder: str, into: Path) -> Path:
        """A folder of a run's artifacts, as it is there: `into`/RUN/FOLDER. What was downloaded before is not asked for again."""
        from mlflow.artifacts import download_artifacts

        directory = into / run_id / folder
        if not directory.is_dir():
            with self.client(), whole_directory(directory) as part, TemporaryDirectory() as scratch:
                found = download_artifacts(artifact_uri=f"runs:/{run_id}/{folder}", dst_path=scratch)
                shutil.copytree(found, part, dirs_exist_ok=True)
        return directory

    def reopen_run(self, run_id: str) -> None:
        """Marks an ended run as running again, in this process."""
        with self.client() as client:
            client.set_tag(run_id, PROCESS_TAG, _this_process())
            client.update_run(run_id, "RUNNING")

    def schedule_run(self, run_id: str) -> None:
        """Marks a run as one that waits for a process to go on with it, by `reopen_run`."""
        with self.client() as client:
            client.update_run(run_id, "SCHEDULED")

    def end_run(self, run_id: str, status: RunStatus = "FINISHED") -> None:
        with self.client() as client:
            client.set_terminated(run_id, status)


def store_in(home: Path) -> str:
    """The URI of the store that a home directory has of its own."""
    return f"sqlite:///{home.expanduser().absolute() / 'mlflow.db'}"


def _this_process() -> str:
    return f"{socket.gethostname()}/{os.getpid()}@{int(psutil.Process().create_time())}"


def _client(uri: str) -> MlflowClient:
    _quiet_import()
    import mlflow

    # The registry's SQL store looks logged models up through the process's own tracking URI, whatever the client's is.
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
    if uri.startswith("sqlite:"):
        _made_once(uri)
    return mlflow.MlflowClient(uri, registry_uri=uri)


@cache
def _quiet_import() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside MLflow, which no user of ours can act on
        import mlflow.store.model_registry.sqlalchemy_store
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    for logger in ("mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store", "alembic"):
        logging.getLogger(logger).setLevel(logging.WARNING)


@cache
def _made_once(uri: str) -> None:
    """Tables are made under a lock: of several processes on a fresh SQLite file, MLflow lets only one live."""
    import mlflow

    file = _sqlite_file(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mlflow.MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)


def _ensure_reachable(uri: str) -> None:
    """Looks before MLflow does, whose own first look retries for minutes."""
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme == "sqlite":
        _ensure_sqlite(uri)
    elif scheme in _PORTS:
        address = urlsplit(uri)
        try:
            where = (address.hostname or "localhost", address.port or _PORTS[scheme])
            socket.create_connection(where, timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise _unreachable(uri, str(error)) from error
    else:
        raise RegistryUnreachable(
            "The tracking store must be sqlite:///FILE, http(s)://SERVER, postgresql://... or mysql://..., but got "
            f"{shown(uri)!r}. A plain directory (MLflow's file store) cannot hold a ledger: leave the URI out to use mlflow.db "
            "in the home."
        )


def _ensure_sqlite(uri: str) -> None:
    file = _sqlite_file(uri)
    try:
        if file.exists():
            with file.open("r+b") as opened:
                header = opened.read(16)
            if header and not header.startswith(b"SQLite format 3"):
                raise _unreachable(uri, f"{file} is not an SQLite database")
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(file.parent, os.W_OK):
                raise _unreachable(uri, f"{file.parent} is not writable")
    except OSError as error:
        raise _unreachable(uri, str(error)) from error


def _sqlite_file(uri: str) -> Path:
    return Path(uri.split("?")[0].removeprefix("sqlite:///"))


def _unreachable(uri: str, reason: str) -> RegistryUnreachable:
    return RegistryUnreachable(
        f"The MLflow registry must answer, but {shown(uri)} does not ({reason}). "
        "Start the server, correct the tracking URI, or leave it out to use the SQLite store in the home directory."
    )


def is_lost_connection(error: Exception) -> bool:
    """Whether MLflow's error is about reaching the store, not about what was asked of it."""
    text = str(error)
    # The last one is an answer without MLflow's error shape: a proxy, or another server on that port.
    signs = ("failed with exception", "failed with timeout exception", "failed with error code", "response body was not")
    lost = text.startswith("API request to") and any(sign in text for sign in signs)
    return lost or getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _folder(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
