"""Whatever is written to be read again is there whole, or not at all."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.whole_file import is_part, write_whole, written_whole

ROOT = Path(__file__).parent.parent


def test_a_file_is_written_with_the_folders_above_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b.json", "{}")
    assert (tmp_path / "a" / "b.json").read_text() == "{}"
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.json"]


def test_writing_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "before")
    with pytest.raises(OSError, match="disk full"), written_whole(file) as part:
        part.write_text("half")
        raise OSError("disk full")
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_until_it_is_done_nobody_sees_the_file(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a.json") as part:
        part.write_text("half")
        assert not (tmp_path / "a.json").exists() and is_part(part)
    assert not is_part(tmp_path / "a.json")


def test_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    file, texts = tmp_path / "a.json", [letter * 10_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_whole(file, text), texts * 5))
    assert file.read_text() in texts and list(tmp_path.iterdir()) == [file]


# Files of an adapter are named by the manifest, which is written last; a build context goes away with its build.
_WHOLE_OTHERWISE = {
    "adapters/whole_file.py",
    "adapters/softcot.py",
    "adapters/steering.py",
    "engine/profile.py",
    "service/bento.py",
}


@pytest.mark.parametrize("package", ["adapters", "engine", "evaluation", "registry", "tuning", "service", "benchmarks"])
def test_no_other_code_writes_a_text_in_place(package: str) -> None:
    for file in sorted((ROOT / package).rglob("*.py")):
        if file.relative_to(ROOT).as_posix() not in _WHOLE_OTHERWISE:
            calls = [node.func.attr for node in ast.walk(ast.parse(file.read_text())) if _is_method_call(node)]
            assert not {"write_text", "write_bytes"} & set(calls), f"{file.name} writes in place; use write_whole"


def _is_method_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
