"""The file that tells executors what a cluster has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tuning.errors import BadCluster
from tuning.executors import EXECUTORS
from tuning.executors.settings import TABLES, cluster_settings

PAGE = (Path(__file__).parent.parent / "docs" / "sweeps.md").read_text()


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    return file


def test_every_executor_has_a_table() -> None:
    assert list(TABLES) == list(EXECUTORS)


def test_the_table_of_an_executor_is_its_settings(tmp_path: Path) -> None:
    file = written(tmp_path, '[slurm]\ncpus = 8\n[k8s]\nimage = "i"\n')
    assert cluster_settings(file, "slurm") == {"cpus": 8}
    assert cluster_settings(file, "local") == {} == cluster_settings(None, "slurm")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[slrum]\ncpus = 8", "tables of a cluster file are local, slurm, k8s, ray, but .*'slrum'"),
        ('[k8s]\nimagee = "one"', r"\[k8s\]: 'imagee' is not a key of a cluster file.*\(and 1 more: 'image'\)"),
        ("[slurm]\ncpu = 8", r"\[slurm\]: 'cpu' is not a key of a cluster file"),
        ("[ray]\ngpus = -1", r"\[ray\]: 'gpus'"),
        ("slurm = 3", r"\[slurm\]: 'cluster file' is a table"),
        ("[slurm", "cannot be read"),
    ],
)
def test_what_a_cluster_file_cannot_say_is_refused_whoever_reads_it(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadCluster, match=said):
        cluster_settings(written(tmp_path, text), "local")


@pytest.mark.parametrize("name", TABLES)
def test_every_setting_is_documented(name: str) -> None:
    for field in TABLES[name].model_fields:
        assert re.search(rf"^\| (`\[{name}\]`)? *\| .*`{field}`", PAGE, re.M) or f"`{name}.{field}`" in PAGE, f"{name}.{field}"


def test_the_documented_file_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    for name in TABLES:
        TABLES[name].of(cluster_settings(written(tmp_path, text), name))
