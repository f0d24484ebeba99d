"""Folders of studies: two of one name never share one, and a study that was made before folders had owners goes on."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from tuning.errors import StudyMismatch
from tuning.study_folder import IDENTITY_KEY, StudyFolder


def folder(directory: Path, shown: str = "postgresql+psycopg://me@host/db") -> StudyFolder:
    return StudyFolder(directory / "one", "one", shown)


def with_an_adapter(place: StudyFolder) -> None:
    (place.directory / "trials" / "0" / "adapter").mkdir(parents=True)


def test_a_new_study_has_a_folder_that_stays_its_own(tmp_path: Path) -> None:
    study, place = optuna.create_study(), folder(tmp_path)
    place.refuse_to_new()
    place.own(study)
    with_an_adapter(place)
    place.refuse_to_other(study)
    assert study.user_attrs[IDENTITY_KEY]


def test_a_second_study_of_the_name_is_told_where_the_first_is_and_what_to_do(tmp_path: Path) -> None:
    folder(tmp_path, "sqlite:///first.db").own(optuna.create_study())
    place = folder(tmp_path)
    for refused in (place.refuse_to_new, lambda: place.refuse_to_other(optuna.create_study())):
        with pytest.raises(StudyMismatch, match=r"is in sqlite:///first\.db, and this one is in postgresql.*--home, or remove"):
            refused()
    second = optuna.create_study()
    second.set_user_attr(IDENTITY_KEY, "of its own")
    with pytest.raises(StudyMismatch, match="another study"):
        place.refuse_to_other(second)


def test_a_study_without_an_identity_goes_on_where_its_adapters_are_and_no_other_begins_there(tmp_path: Path) -> None:
    place, study = folder(tmp_path), optuna.create_study()
    with_an_adapter(place)
    place.refuse_to_other(study)
    assert IDENTITY_KEY not in study.user_attrs
    with pytest.raises(StudyMismatch):
        place.refuse_to_new()
    study.set_user_attr(IDENTITY_KEY, "of another folder")
    with pytest.raises(StudyMismatch):
        place.refuse_to_other(study)


def test_a_study_has_a_folder_in_every_home(tmp_path: Path) -> None:
    study, there = optuna.create_study(), folder(tmp_path / "there")
    folder(tmp_path / "here").own(study)
    there.refuse_to_other(study)
    with pytest.raises(StudyMismatch):
        there.refuse_to_new()


def test_a_study_that_was_deleted_leaves_its_folder(tmp_path: Path) -> None:
    place = folder(tmp_path)
    place.own(optuna.create_study())
    place.leave()
    place.refuse_to_new()
