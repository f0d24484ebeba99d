"""What docs/security.md says of the code as a whole: no code of models, no unrestricted pickles, no shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ROOT

PICKLES = {"pickle", "joblib", "dill", "shelve", "marshal"}
PACKAGES = ("adapters", "engine", "evaluation", "registry", "tuning", "service")


def faults(tree: ast.AST) -> Iterator[str]:
    """Calls that would run what a file or a stranger says."""
    for node in ast.walk(tree):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if {name.split(".")[0] for name in imported} & PICKLES:
            yield "imports a pickle"
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
        if called in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"):
            yield called
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load of anything"
        if "trust_remote_code" in keywords or keywords.get("shell") == "True":
            yield "code of a model, or a shell"


def test_nothing_runs_what_a_file_says() -> None:
    found = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            if faulty := list(faults(ast.parse(file.read_text()))):
                found[str(file.relative_to(ROOT))] = faulty
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.memory",
        "eval(text)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(words, shell=True)",
    ],
)
def test_what_would_run_it_is_found(code: str) -> None:
    assert list(faults(ast.parse(code)))


def test_from_the_hub_come_no_pickles_and_no_code() -> None:
    tree = ast.parse((ROOT / "adapters" / "backbone.py").read_text())
    (call,) = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "snapshot_download")
    (patterns,) = (ast.literal_eval(one.value) for one in call.keywords if one.arg == "allow_patterns")
    assert "*.safetensors" in patterns and not {Path(one).suffix for one in patterns} & {".bin", ".py", ".pt", ".pkl", ""}
