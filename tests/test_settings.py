"""Settings: environment variables in, the same environment out."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.commands.serve import serve
from service.settings import BadSetting, Settings, misspelt


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
        ("GRAFTLINE_THREADS", "1000000"),
        ("GRAFTLINE_NAMES", "law/tax"),
        ("GRAFTLINE_TRACKING_URI", "gopher://here"),
    ],
)
def test_a_wrong_value_is_refused_by_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{variable} .*{value}"):
        Settings.from_environment({variable: value})


@pytest.mark.parametrize("field", ["device", "frozen", "adapter_directory", "job_recipe"])
def test_what_is_not_on_this_machine_is_refused_at_the_start_by_its_variable(field: str) -> None:
    settings = Settings.from_environment({f"GRAFTLINE_{field.upper()}": "/gpu9/away"})
    with pytest.raises(BadSetting, match=f"GRAFTLINE_{field.upper()} must be .*'/gpu9/away'"):
        settings.check_here()


def test_serving_asks_whether_its_settings_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAFTLINE_DEVICE", "gpu9")
    with pytest.raises(BadSetting, match="GRAFTLINE_DEVICE"):
        serve("127.0.0.1", 1, None, None, tmp_path, None)


@pytest.mark.parametrize("uri", ["sqlite:////x/m.db", "postgresql+psycopg2://a@b/c", "https://there", "runs", "databricks"])
def test_a_store_is_whatever_mlflow_takes(uri: str) -> None:
    assert Settings.from_environment({"GRAFTLINE_TRACKING_URI": uri}).tracking_uri == uri


def test_a_misspelt_setting_is_told_with_the_nearest() -> None:
    (told,) = misspelt({"GRAFTLINE_MAXROWS": "4", "GRAFTLINE_CACHE": "/x", "GRAFTLINE_PRICE_PER_HOUR": "2 EUR"})
    assert "GRAFTLINE_MAXROWS" in told and "GRAFTLINE_MAX_ROWS?" in told
