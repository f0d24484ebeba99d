"""The policy of a name: set once, at least as strict ever after, and changed only with a reason."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gated_names import NAME, report

from evaluation.retention import gate_measure
from evaluation.tasks import TASKS
from registry.added_tags import added
from registry.errors import PolicyRefused
from registry.ledger import Ledger
from registry.policy import IN_NATS, POLICY_TAG, Policy, PolicyChange, policies, set_policy
from registry.status import name_status
from registry.tracking import Tracking
from service.commands.releases import gate_policy

POLICY = Policy(
    protected=("boxes", "kinship"),
    margin=0.1,
    margins={"boxes": 0.05},
    pooled_margin=0.05,
    alpha=0.05,
    round_items=20,
    domain_items=50,
    max_rounds=4,
    time_budget_s=60,
)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"margin": 0.2}, "the margin of kinship (0.2; the name's is 0.1)"),
        ({"margins": {}}, "the margin of boxes (0.1; the name's is 0.05)"),
        ({"pooled_margin": None}, "pooled_margin (none; the name's is 0.05)"),
        ({"alpha": 0.2}, "alpha (0.2; the name's is 0.05)"),
        ({"protected": ("boxes",)}, "protected (without kinship"),
    ],
)
def test_a_laxer_policy_is_refused_by_the_field_and_both_values(change: dict[str, object], field: str) -> None:
    where = POLICY.model_copy(update=change).laxer_than(POLICY)
    assert where is not None and field in where
    assert POLICY.laxer_than(POLICY.model_copy(update=change)) is None


def test_a_smaller_least_gain_is_laxer() -> None:
    asked = POLICY.model_copy(update={"min_domain_gain": 0.1})
    assert asked.laxer_than(POLICY) is None and POLICY.laxer_than(asked) == "min_domain_gain (0; the name's is 0.1)"


def test_how_items_are_drawn_does_not_bind() -> None:
    assert POLICY.model_copy(update={"round_items": 5, "time_budget_s": 1.0, "max_rounds": 1}).laxer_than(POLICY) is None


def test_the_first_recipe_makes_the_policy_and_a_later_one_changes_nothing(tracking: Tracking) -> None:
    assert gate_policy(tracking, NAME, POLICY, None, "") == POLICY
    assert gate_policy(tracking, NAME, POLICY.model_copy(update={"margin": 0.9}), None, "because") == POLICY
    assert len(policies(tracking, NAME)) == 1


def test_a_stricter_file_holds_for_one_gate(tracking: Tracking, tmp_path: Path) -> None:
    (tmp_path / "strict.toml").write_text('margin = 0.02\nprotected = ["boxes", "kinship", "calendar"]\n')
    asked = gate_policy(tracking, NAME, POLICY, tmp_path / "strict.toml", "")
    assert (asked.margin, asked.margins, asked.pooled_margin) == (0.02, {"boxes": 0.05}, 0.05)
    assert gate_policy(tracking, NAME, POLICY, None, "") == POLICY


def test_a_laxer_file_needs_a_reason_which_stays(tracking: Tracking, tmp_path: Path) -> None:
    file = tmp_path / "lax.toml"
    file.write_text("alpha = 0.1\n")
    with pytest.raises(PolicyRefused, match=r"alpha \(0.1; the name's is 0.05\).*--reason"):
        gate_policy(tracking, NAME, POLICY, file, " ")
    asked = gate_policy(tracking, NAME, POLICY, file, "a demo")
    assert gate_policy(tracking, NAME, POLICY, None, "") == asked and asked.alpha == 0.1
    assert [change.reason for change in policies(tracking, NAME)][1:] == ["a demo"]
    assert any("laxer in alpha" in warning and "a demo" in warning for warning in name_status(tracking, NAME).warnings)


@pytest.mark.parametrize("text", ["marign = 0.1", "margin = 2.0", "margin", "[margins]\nboxes = -1.0"])
def test_a_file_that_is_no_policy_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(PolicyRefused, match="bad.toml"):
        POLICY.with_file(tmp_path / "bad.toml")


def test_a_report_made_under_a_laxer_policy_promotes_nothing(tracking: Tracking) -> None:
    set_policy(tracking, NAME, POLICY.model_copy(update={"protected": ("boxes", "kinship")}), actor="ada", reason="first")
    with pytest.raises(PolicyRefused, match="without kinship"):
        Ledger(tracking, NAME).promote(1, report(1))
    bound = POLICY.model_copy(update={"protected": ("boxes",), "pooled_margin": None, "margins": {}})
    set_policy(tracking, NAME, bound, actor="ada", reason="kinship is no concern")
    assert Ledger(tracking, NAME).promote(1, report(1)).void is None


def test_a_release_of_another_domain_is_refused_by_the_way_out(tracking: Tracking) -> None:
    medicine = POLICY.model_copy(update={"domain": "icd10"})
    assert gate_policy(tracking, NAME, medicine, None, "") == medicine
    with pytest.raises(PolicyRefused, match="'customs' and the name's policy says 'icd10'.*--name"):
        gate_policy(tracking, NAME, medicine.model_copy(update={"domain": "customs"}), None, "because")
    easier = medicine.model_copy(update={"domain": "customs"})
    assert easier.laxer_than(medicine) == "domain (customs; the name's is icd10)" and easier.laxer_than(POLICY) is None


def test_a_report_on_another_domain_promotes_nothing(tracking: Tracking) -> None:
    bound = POLICY.model_copy(update={"domain": "customs", "protected": ("boxes",), "pooled_margin": None, "margins": {}})
    set_policy(tracking, NAME, bound, actor="ada", reason="first")
    with pytest.raises(PolicyRefused, match=r"domain \(icd10; the name's is customs\)"):
        Ledger(tracking, NAME).promote(1, report(1))


@pytest.mark.parametrize("text", ["", "[{", '[{"policy": 1}]', "{}x", "3"])
def test_policies_that_cannot_be_read_are_refused_with_the_place_and_the_way_out(tracking: Tracking, text: str) -> None:
    with tracking.client() as client:
        client.set_registered_model_tag(NAME, POLICY_TAG, text)
    with pytest.raises(PolicyRefused, match=rf"{NAME} .*{POLICY_TAG}.* delete it"):
        policies(tracking, NAME)


def test_nats_have_a_margin_of_their_own() -> None:
    asked = POLICY.model_copy(update={"protected": ("boxes", "kinship", "text")})
    assert (asked.margin_of("text"), asked.margin_of("kinship")) == (asked.nats_margin, asked.margin)
    laxer = asked.model_copy(update={"nats_margin": 0.2}).laxer_than(asked)
    assert laxer is not None and "the margin of text (0.2; the name's is 0.05)" in laxer


def test_what_is_in_nats_is_what_the_gate_measures_in_nats() -> None:
    nats = {name for name, task in TASKS.items() if not gate_measure(task).unit.startswith("share")}
    assert nats == IN_NATS


def test_changes_that_are_made_at_once_all_stay(tracking: Tracking) -> None:
    actors = [f"promoter {number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda actor: set_policy(tracking, NAME, POLICY, actor=actor, reason="at once"), actors))
    found = policies(tracking, NAME)
    assert sorted(change.actor for change in found) == actors and found == policies(tracking, NAME)
    set_policy(tracking, NAME, POLICY, actor="the last one", reason="later")
    assert policies(tracking, NAME)[-1].actor == "the last one"


def test_a_long_history_fits_into_a_column_of_postgresql(tracking: Tracking) -> None:
    """A tag of a registered model has 5,000 characters there; SQLite takes any number."""
    for number in range(12):
        set_policy(tracking, NAME, POLICY, actor="ada", reason=f"change {number}: " + "why it was made, at some length. " * 10)
    assert [change.reason[:9] for change in policies(tracking, NAME)][-1] == "change 11" and len(policies(tracking, NAME)) == 12
    with tracking.client() as client:
        assert max(map(len, client.get_registered_model(NAME).tags.values())) <= 5000


def test_the_list_that_earlier_versions_kept_comes_first(tracking: Tracking) -> None:
    old = PolicyChange(policy=POLICY, actor="ada", reason="old", created="2026-01-01T00:00:00+00:00")
    with tracking.client() as client:
        client.set_registered_model_tag(NAME, POLICY_TAG, json.dumps([old.model_dump(mode="json")]))
    set_policy(tracking, NAME, POLICY, actor="bob", reason="new")
    assert [change.reason for change in policies(tracking, NAME)] == ["old", "new"]


def test_the_change_that_cannot_be_read_is_named_by_its_tag(tracking: Tracking) -> None:
    set_policy(tracking, NAME, POLICY, actor="ada", reason="first")
    with tracking.client() as client:
        [(tag, _)] = added(client.get_registered_model(NAME).tags, POLICY_TAG)
        client.set_registered_model_tag(NAME, tag, "gone")
    with pytest.raises(PolicyRefused, match=rf"in {tag} cannot be read"):
        policies(tracking, NAME)
