"""Settings: environment variables in, the same environment out."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_environment({})
    assert (settings.backbone, settings.home, settings.port) == ("smollm2-135m-reasoner", Path(".graftline"), 3000)


def test_names_are_separated_by_commas() -> None:
    assert Settings.from_environment({"GRAFTLINE_NAMES": "law, tax,"}).names == ("law", "tax")


def test_an_empty_variable_is_an_unset_one() -> None:
    assert Settings.from_environment({"GRAFTLINE_DEVICE": "", "GRAFTLINE_PORT": ""}) == Settings()


def test_another_process_reads_the_same_settings() -> None:
    settings = Settings(backbone="org/name", home=Path("/srv/graftline"), names=("law", "tax"), poll_s=2.5, max_rows=4, port=8080)
    assert Settings.from_environment(settings.environment()) == settings


def test_paths_are_absolute_for_another_process() -> None:
    assert Path(Settings().environment()["GRAFTLINE_HOME"]).is_absolute()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GRAFTLINE_PORT", "70000"),
        ("GRAFTLINE_POLL_S", "60"),
        ("GRAFTLINE_MAX_ROWS", "many"),
        ("GRAFTLINE_REQUEST_TIMEOUT_S", "inf"),
    ],
)
def test_a_wrong_value_is_refused_by_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{variable} .*{value}"):
        Settings.from_environment({variable: value})
