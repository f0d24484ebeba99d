"""`graftline sae`: train, score and steer on the test-bed; one sentence where it is refused, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import ended
from test_sae import random_sae

from adapters.backbone import TESTBED, Backbone
from adapters.files import load_adapters
from adapters.sae import SAE
from adapters.steering import Steering
from registry.manifest import verify

WORDS = "rot; mirror; shift; reverse"
TRAIN = ("--task", "alchemy", "--text", "alchemy", "--backbone", str(TESTBED), "--words", WORDS, "--home", "home")
SMALL = ("--places", "4000", "--width", "2", "--k", "8", "--batch-size", "256", "--passes", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder, and the home that it was trained in."""
    folder = tmp_path_factory.mktemp("sae")
    with pytest.MonkeyPatch.context() as patch:
        assert ended(("sae", "train", "out", *TRAIN, *SMALL), folder, patch) in (0, 1)
    return folder


def test_an_autoencoder_is_written_with_its_gates(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = SAE.load(trained / "out")
    gates = sae.record.told["gates"]
    assert (sae.num_features, sae.k, sae.record.layer) == (2 * 96, 8, 2)
    assert gates["fvu"] < 0.3 and gates["recovered"]["share"] > 0.9 and gates["stability"] is not None
    # Everything is kept: the same command reads it, and ends as its gates say.
    assert ended(("sae", "train", "again", *TRAIN, *SMALL, "--json"), trained, monkeypatch) == (0 if gates["passed"] else 1)
    told = json.loads(capsys.readouterr().out)
    assert told["gates"] == gates and told["features"] == 192
    assert (trained / "again" / "sae_weights.safetensors").read_bytes() == (
        trained / "out" / "sae_weights.safetensors"
    ).read_bytes()


def test_features_are_scored_by_the_words_of_the_training_or_by_others(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score = ("sae", "score", "out", "--home", "home")
    assert ended((*score, "--top", "3", "--json"), trained, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["words"]) == {"rot", "mirror", "shift", "reverse"} and len(told["features"]) == 3
    assert all(row["score"] > 0 for row in told["features"])
    assert ended((*score, "--words", "wait; hmm, perhaps"), trained, monkeypatch) == 2
    assert "0 of 2 do" in (said := capsys.readouterr().err) and "wait 0, hmm/perhaps 0" in said


@pytest.mark.parametrize("form", ["column", "clamp"])
def test_a_feature_becomes_a_steering_adapter_with_its_comparison(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    steer = ("sae", "steer", "out", form, "--form", form, "--items", "8", "--home", "home", "--despite-gates")
    assert ended((*steer, "--strength", "0.5", "--json"), trained, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    (steering,) = load_adapters(trained / form)
    assert isinstance(steering, Steering) and steering.layer == 2 and (steering.hold is not None) == (form == "clamp")
    assert {"off", "column", "clamp", "difference of means", "random column 1"} <= set(told["systems"])
    assert json.loads((trained / form / "feature.json").read_text())["feature"] == told["feature"]
    assert (told["domain"], told["eps"]) == ("alchemy", 0.03)
    assert verify(trained / form).derived["form"] == form  # ready for `graftline publish`


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "new", *TRAIN, "--width", "1", "--k", "96"), "k=96 and 96 features"),
        (("train", "new", *TRAIN, "--places", "100", "--k", "8"), "2048 places or more"),
        (("train", "new", *TRAIN[2:], "--task", "astrology"), "'astrology' is neither"),
        (("train", "new", *TRAIN, "--layer", "9"), "layers 0 to 3, but layer=9"),
        (("train", "new", *TRAIN, "--layer", "2.5"), "or a share of the depth in (0, 1), but got 2.5"),
        (("train", "new", *TRAIN, "--words", " ; "), "has none. Write 'so; because, since'"),
        (("train", "out", *TRAIN), "out is there already"),
        (("train", "nowhere/new", *TRAIN), "nowhere cannot be read or written"),
        (("score", "absent"), "absent is not whole"),
        (("score", "foreign", "--backbone", str(TESTBED)), "was trained on backbone"),
        (("steer", "out", "new", "--feature", "999", "--home", "home", "--despite-gates"), "features are 0 to 191, but 999"),
        (("steer", "out", "new", "--feature", "1", "--form", "sideways", "--despite-gates"), "Say column or clamp"),
        (("steer", "foreign", "new", "--backbone", str(TESTBED)), "was trained on backbone"),
        (("steer", "absent", "new", "--strength", "0"), "a finite strength above 0, but got 0"),
        (("steer", "out", "new", "--despite-gates", "--eps", "nan"), "a finite number of nats above 0, but got nan"),
    ],
    ids=lambda value: " ".join(value[:2]) + "…" if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(
    trained: Path,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    random_sae(backbone).save(trained / "foreign")
    assert ended(("sae", *arguments), trained, monkeypatch) == 2
    assert said in capsys.readouterr().err
    assert not (trained / "new").exists() and not list(trained.glob(".*.part"))


def test_features_of_an_autoencoder_that_did_not_pass_do_not_steer(
    trained: Path, testbed: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = SAE.load(trained / "out")
    sae.told(gates={**sae.record.told["gates"], "passed": False}).save(trained / "failed")
    assert ended(("sae", "steer", "failed", "new", "--home", "home"), trained, monkeypatch) == 2
    assert "failed did not pass them all" in capsys.readouterr().err
