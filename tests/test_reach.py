"""Which databases several machines can share, and which URLs nobody is to read."""

from __future__ import annotations

import pytest

from registry.database_url import has_secret, shown
from tuning.errors import BadStorage
from tuning.executors.executor import WorkerCommand
from tuning.executors.reach import require_many_hosts

STORAGE, TRACKING = "postgresql+psycopg://me@db.example.org/studies", "http://mlflow.example.org:5000"


@pytest.mark.parametrize(
    "storage",
    [
        "sqlite:////shared/optuna.db",
        "sqlite+pysqlite:///optuna.db",
        "postgresql+psycopg://me@localhost:5432/studies",
        "postgresql+psycopg://me:p@x@127.0.0.1/studies",
        "postgresql+psycopg://me@[::1]:5432/studies",
        "postgresql+psycopg:///studies",
        "postgresql+psycopg://me@/studies?host=/var/run/postgresql",
        "optuna.db",
    ],
)
def test_a_study_of_this_machine_alone_is_refused(storage: str) -> None:
    with pytest.raises(BadStorage, match=r"slurm.*--storage postgresql"):
        require_many_hosts(WorkerCommand("s", storage, tracking_uri=TRACKING), "slurm")


@pytest.mark.parametrize(
    "storage",
    [
        STORAGE,
        "postgresql+psycopg://me:p@ss@db.example.org:5432/studies?sslmode=require",
        "postgresql+psycopg://me@/studies?host=db.example.org",
        "mysql+pymysql://me@10.0.0.7/studies",
        "postgresql+psycopg://me@[2001:db8::7]:5432/studies",
    ],
)
def test_a_study_on_a_server_is_not(storage: str) -> None:
    require_many_hosts(WorkerCommand("s", storage, tracking_uri=TRACKING), "slurm")


@pytest.mark.parametrize("uri", [None, "sqlite:////shared/mlflow.db", "http://localhost:5000", "./mlruns"])
def test_runs_of_this_machine_alone_are_refused(uri: str | None) -> None:
    with pytest.raises(BadStorage, match=r"k8s.*--tracking-uri http"):
        require_many_hosts(WorkerCommand("s", STORAGE, tracking_uri=uri), "k8s")


@pytest.mark.parametrize("uri", [TRACKING, "databricks", "postgresql://me@db.example.org/mlflow"])
def test_runs_on_a_server_are_not(uri: str) -> None:
    require_many_hosts(WorkerCommand("s", STORAGE, tracking_uri=uri), "k8s")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:hush@db/studies",
        "postgresql+psycopg://me:hu#sh@db/studies",
        "postgresql+psycopg://me:hu?sh/@db/studies",
        "postgresql+psycopg://me:hu@sh@db/studies",
        "postgresql+psycopg://db/studies?user=me&password=hush",
        "https://me:hush@mlflow.example.org",
    ],
)
def test_a_password_is_found_and_never_shown(url: str) -> None:
    assert has_secret(url) and "sh" not in shown(url).replace("hu@", "") and "***" in shown(url)
    refused = WorkerCommand("s", url.replace("@db", "@localhost").replace("//db", "//localhost"), tracking_uri=TRACKING)
    if "mlflow" not in url and "?sh/" not in url:
        with pytest.raises(BadStorage) as error:
            require_many_hosts(refused, "slurm")
        assert "hush" not in str(error.value)


def test_a_worker_reads_a_password_from_its_environment_alone() -> None:
    storage, uri = "postgresql+psycopg://me:hush@db/studies", "https://me:hush@mlflow.example.org"
    command = WorkerCommand("s", storage, tracking_uri=uri)
    assert command.words() == ["graftline", "worker", "--study", "s"]
    assert command.environment() == {"GRAFTLINE_STORAGE": storage, "GRAFTLINE_TRACKING_URI": uri}


@pytest.mark.parametrize("url", [None, STORAGE, TRACKING, "sqlite:////a:b/optuna.db", "postgresql+psycopg://[::1]:5432/s"])
def test_a_url_without_one_is_shown_as_it_is(url: str | None) -> None:
    assert not has_secret(url)
    assert url is None or shown(url) == url
