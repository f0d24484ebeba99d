"""What comes from elsewhere writes no control characters to a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gated_names import NAME, report

from registry.canary import CanaryLedger
from registry.ledger import Ledger
from registry.printable import printable
from registry.tracking import Tracking
from registry.transfer import ORIGIN_TAG, Origin
from service.cli import _end
from service.commands.canary import status as canary_status
from service.commands.doctor import doctor
from service.commands.status import status

EVIL = "ada\x1b[2J\x1b]0;owned\x07\r\u202egnp\x9b"


def is_plain(text: str) -> bool:
    return all(one.isprintable() or one == "\n" for one in text)


def test_what_shows_nothing_is_told_as_its_escape_and_letters_of_any_script_stay() -> None:
    assert printable(EVIL) == r"ada\x1b[2J\x1b]0;owned\x07\r\u202egnp\x9b"
    assert printable("Größe 大 [bold] \\ 'x'") == "Größe 大 [bold] \\ 'x'"
    assert printable("a\n\ud800\t", keep="\n") == "a\n\\ud800\\t"


def test_the_sentence_of_an_import_is_plain() -> None:
    fields = dict.fromkeys(("name", "registry", "sha256", "exported_by", "exported", "imported_by", "gate_verdict"), EVIL)
    said = Origin(version=1, **fields).sentence
    assert is_plain(said) and said.count(r"\x1b[2J") == 3


def test_status_canaries_and_the_doctor_print_what_the_registry_says_plainly(
    tracking: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tracking, NAME).promote(1, report(1), actor=EVIL, reason=EVIL)
    CanaryLedger(tracking, NAME).start(2, 0.1, report(2), actor=EVIL, reason=EVIL)
    origin = Origin(version=1, **dict.fromkeys(set(Origin.model_fields) - {"version"}, EVIL))
    with tracking.client() as client:
        client.set_model_version_tag(NAME, "2", ORIGIN_TAG, origin.model_dump_json())
    for show in (status, lambda home, uri, as_json: canary_status(NAME, home, uri, as_json)):
        show(tmp_path, None, False)
        told = capsys.readouterr().out
        assert is_plain(told) and r"\x1b[2J" in told.replace("\n", "")
    with tracking.client() as client:
        client.delete_model_version(f"{NAME}.releases", "1")
    assert doctor(NAME, False, None, 168, tmp_path, None, False) == 1
    told = capsys.readouterr().out
    assert is_plain(told) and r"\x1b[2J" in told
    status(tmp_path, None, True)
    assert json.loads(capsys.readouterr().out)["names"][0]["name"] == NAME


def test_an_error_is_plain_and_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _end(ValueError(), f"{EVIL}\nthe next line")
    told = capsys.readouterr().err
    assert is_plain(told) and told.endswith("\\x9b\nthe next line\n")
