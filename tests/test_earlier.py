"""Earlier domains: what other names serve on the same backbone is protected from a new release."""

from __future__ import annotations

from pathlib import Path

import pytest
from gated_names import NAME
from small_releases import promote, random_lora, write_release

from adapters.backbone import Backbone
from evaluation.measures import MEASURES
from evaluation.retention import gate_measure
from evaluation.tasks import DOMAINS, FAMILIES
from registry.earlier import earlier_domains
from registry.errors import PolicyRefused
from registry.policy import Policy, refuse_laxer
from registry.release import publish
from registry.tracking import Tracking

POLICY = Policy(protected=("boxes",), margin=0.1, alpha=0.05, round_items=10, domain_items=10, max_rounds=1, time_budget_s=1.0)


def served(
    tracking: Tracking, backbone: Backbone, directory: Path, name: str, domain: str, fingerprint: str | None = None
) -> None:
    """A champion of the name, fitted to the domain."""
    write_release(directory / name, backbone, random_lora(backbone, 1), fingerprint=fingerprint, domain=domain)
    promote(tracking, name, publish(tracking, name, directory / name).version)


def test_other_champions_of_the_same_backbone_bring_their_domains(tracking: Tracking, backbone: Backbone, tmp_path: Path) -> None:
    served(tracking, backbone, tmp_path, "customs-office", "customs")
    served(tracking, backbone, tmp_path, "coding", "icd10")
    served(tracking, backbone, tmp_path, "elsewhere", "icd10-chapter", fingerprint="0" * 64)
    found = earlier_domains(tracking, "new", backbone.fingerprint, "icd10")
    assert {domain: str(champion) for domain, champion in found.items()} == {"customs": "customs-office@1"}


def test_a_task_that_moved_to_another_file_is_the_same_domain(tracking: Tracking, backbone: Backbone, tmp_path: Path) -> None:
    served(tracking, backbone, tmp_path, "beside", "with_old.toml")  # whose manifest calls its task `small`
    assert not earlier_domains(tracking, "new", backbone.fingerprint, "first.toml", "small")
    assert earlier_domains(tracking, "new", backbone.fingerprint, "first.toml", "other")


def test_what_waits_and_was_not_promoted_is_not_served_yet(tracking: Tracking, backbone: Backbone, tmp_path: Path) -> None:
    write_release(tmp_path / "waiting", backbone, random_lora(backbone, 1), domain="customs")
    publish(tracking, "waiting", tmp_path / "waiting")
    assert earlier_domains(tracking, NAME, backbone.fingerprint, "icd10") == {}


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_is_protected_by_its_likeliest_option(name: str) -> None:
    assert gate_measure(DOMAINS[name]) == MEASURES["choice_accuracy"]


def test_a_reasoning_family_is_protected_by_what_is_written() -> None:
    assert {gate_measure(task).name for task in FAMILIES.values()} == {"generation"}


def test_to_leave_earlier_domains_out_is_laxer() -> None:
    with pytest.raises(PolicyRefused, match="earlier_domains"):
        refuse_laxer(POLICY.model_copy(update={"earlier_domains": False}), POLICY, NAME)


def test_protecting_more_is_never_laxer() -> None:
    refuse_laxer(POLICY.protecting(["customs", "boxes"]), POLICY, NAME)
    assert POLICY.protecting(["customs", "boxes"]).protected == ("boxes", "customs")
