"""API keys: shown once, hashed at rest, and gone for the next request when they are revoked."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.access import Access, OpenToAll, refuse_open
from service.audit import read_audit
from service.caller import Quota, Scope
from service.cli import app
from service.keys import InvalidKey, KeyRefused, KeyStore, KeysUnreadable

ROOT = Path(__file__).parent.parent
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
COMPLETE = (Scope.COMPLETE,)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path, now=lambda: NOON)


def graftline(home: Path, *arguments: str) -> str:
    """What the command prints; its error, where it ends with one."""
    done = CliRunner().invoke(app, [*arguments, "--home", str(home)])
    return str(done.exception) if done.exception is not None and done.exit_code != 0 else done.output


def test_keys_that_are_gone_open_nothing_until_one_is_made(tmp_path: Path, store: KeyStore) -> None:
    store.create("bot", COMPLETE, Quota())
    store.file.unlink()
    restarted = KeyStore(tmp_path, now=lambda: NOON)
    with pytest.raises(KeysUnreadable, match="keys create.*remove keys.closed"):
        restarted.all()
    assert "holds none any more" in graftline(tmp_path, "keys", "list")
    with pytest.raises(KeysUnreadable):
        refuse_open("0.0.0.0", tmp_path, is_open=False)
    made = restarted.create("bot", COMPLETE, Quota())
    assert restarted.holder(made.secret).name == "bot"


def test_a_server_marks_keys_that_were_brought_there(tmp_path: Path, store: KeyStore) -> None:
    store.create("bot", COMPLETE, Quota())
    (tmp_path / "keys.closed").unlink()
    Access(store).announce()
    store.file.unlink()
    with pytest.raises(KeysUnreadable):
        KeyStore(tmp_path).all()


def test_a_secret_opens_what_its_key_says(store: KeyStore) -> None:
    made = store.create("bot", (Scope.COMPLETE, Scope.TUNE), Quota(requests_per_min=60))
    holder = store.holder(made.secret)
    assert (holder.key, holder.name, holder.quota) == (made.key.id, "bot", Quota(requests_per_min=60))
    assert holder.may(Scope.TUNE) and not holder.may(Scope.ADMIN)


def test_the_file_holds_no_secret_and_is_the_owners_alone(store: KeyStore) -> None:
    secret = store.create("bot", COMPLETE, Quota()).secret
    assert secret not in store.file.read_text() and secret.split("-", 2)[2] not in store.file.read_text()
    assert stat.S_IMODE(store.file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change", [lambda s: s[:-1], lambda s: s[:-1] + "!", lambda s: s + "x", lambda s: "", lambda s: s.upper()]
)
def test_what_is_nearly_the_secret_opens_nothing(store: KeyStore, change: object) -> None:
    secret = store.create("bot", COMPLETE, Quota()).secret
    assert callable(change)
    with pytest.raises(InvalidKey) as caught:
        store.holder(change(secret))
    assert secret not in str(caught.value)


def test_another_keys_id_does_not_open_it(store: KeyStore) -> None:
    one, other = (store.create(name, COMPLETE, Quota()) for name in ("one", "other"))
    with pytest.raises(InvalidKey):
        store.holder(one.secret.replace(one.key.id, other.key.id))


def test_what_another_process_revoked_holds_for_the_next_request(store: KeyStore, tmp_path: Path) -> None:
    made = store.create("bot", COMPLETE, Quota())
    assert store.holder(made.secret)
    KeyStore(tmp_path).revoke("bot")
    with pytest.raises(InvalidKey, match="revoked"):
        store.holder(made.secret)


def test_a_key_is_revoked_once_and_keeps_the_time_of_it(tmp_path: Path) -> None:
    now = [NOON]
    store = KeyStore(tmp_path, now=lambda: now[0])
    made = store.create("bot", COMPLETE, Quota())
    store.revoke(made.key.id)
    now[0] = NOON + timedelta(hours=1)
    for reference in ("bot", made.key.id):
        with pytest.raises(KeyRefused, match="no key"):
            store.revoke(reference)
    assert [key.revoked_at for key in store.all()] == [NOON]


def test_a_name_that_an_expired_key_had_before_means_the_valid_one(tmp_path: Path) -> None:
    now = [NOON]
    store = KeyStore(tmp_path, now=lambda: now[0])
    store.create("bot", COMPLETE, Quota(), expires_at=NOON + timedelta(hours=1))
    now[0] = NOON + timedelta(hours=2)
    second = store.create("bot", COMPLETE, Quota())
    store.revoke("bot")
    with pytest.raises(InvalidKey, match="revoked"):
        store.holder(second.secret)


def test_a_file_of_the_same_size_is_read_again(store: KeyStore) -> None:
    made = store.create("bot", COMPLETE, Quota())
    assert store.holder(made.secret)
    store.file.write_text(store.file.read_text().replace(made.key.digest, "0" * 64))
    os.utime(store.file, ns=(1, 1))
    with pytest.raises(InvalidKey, match="not one of this server's"):
        store.holder(made.secret)


def test_a_key_opens_something_and_ends_later_than_now(store: KeyStore) -> None:
    with pytest.raises(KeyRefused, match="without a scope opens nothing"):
        store.create("bot", (), Quota())
    with pytest.raises(KeyRefused, match="must end in the future"):
        store.create("bot", COMPLETE, Quota(), expires_at=NOON)


def test_a_key_ends_at_its_time(tmp_path: Path) -> None:
    now = [NOON]
    store = KeyStore(tmp_path, now=lambda: now[0])
    made = store.create("bot", COMPLETE, Quota(), expires_at=NOON + timedelta(hours=1))
    now[0] = NOON + timedelta(minutes=59)
    assert store.holder(made.secret)
    now[0] = NOON + timedelta(hours=1)
    with pytest.raises(InvalidKey, match="expired"):
        store.holder(made.secret)


def test_a_name_belongs_to_one_valid_key(store: KeyStore) -> None:
    store.create("bot", COMPLETE, Quota())
    with pytest.raises(KeyRefused, match="graftline keys revoke bot"):
        store.create("bot", COMPLETE, Quota())
    store.revoke("bot")
    store.create("bot", COMPLETE, Quota())
    assert [key.state(NOON) for key in store.all()] == ["revoked", "valid"]


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "-x", "é"])
def test_a_name_that_would_harm_a_log_is_refused(store: KeyStore, name: str) -> None:
    with pytest.raises(KeyRefused, match="Try support-bot"):
        store.create(name, COMPLETE, Quota())


def test_processes_that_make_keys_at_once_lose_none(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from service.keys import KeyStore; from service.caller import Quota, Scope\n"
        f"store = KeyStore(Path({str(tmp_path)!r}))\n"
        "for number in range(10): store.create(f'{sys.argv[1]}-{number}', (Scope.COMPLETE,), Quota())"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, who], cwd=ROOT) for who in ("a", "b")]
    assert [process.wait() for process in running] == [0, 0]
    assert len(KeyStore(tmp_path).all()) == 20


def test_a_damaged_file_lets_nobody_in(store: KeyStore) -> None:
    secret = store.create("bot", COMPLETE, Quota()).secret
    store.file.write_text(store.file.read_text()[:-20])
    with pytest.raises(KeysUnreadable, match="Bring back a copy"):
        store.holder(secret)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_lets_nobody_in(store: KeyStore, mode: int) -> None:
    secret = store.create("bot", COMPLETE, Quota()).secret
    os.chmod(store.file, mode)
    os.utime(store.file)
    with pytest.raises(KeysUnreadable, match="chmod 600"):
        store.holder(secret)


def test_an_address_that_others_reach_needs_keys_or_a_word(tmp_path: Path) -> None:
    refuse_open("127.0.0.1", tmp_path, is_open=False)
    refuse_open("0.0.0.0", tmp_path, is_open=True)
    with pytest.raises(OpenToAll, match="graftline keys create"):
        refuse_open("0.0.0.0", tmp_path, is_open=False)
    KeyStore(tmp_path).create("bot", COMPLETE, Quota())
    refuse_open("0.0.0.0", tmp_path, is_open=False)


def test_the_commands_make_list_and_revoke_and_are_audited(tmp_path: Path) -> None:
    secret = graftline(tmp_path, "keys", "create", "bot", "--scope", "tune", "--expires", "90d", "--max-running", "2").split()[0]
    holder = KeyStore(tmp_path).holder(secret)
    assert (holder.scopes, holder.quota) == (frozenset({Scope.TUNE}), Quota(max_running=2))
    listed = graftline(tmp_path, "keys", "list")
    assert "bot" in listed and "may tune; max running 2; until" in listed and secret not in listed
    assert "opens nothing any more" in graftline(tmp_path, "keys", "revoke", "bot")
    printed = graftline(tmp_path, "audit")
    assert "key.create 'bot'  done" in printed and "key.revoke 'bot'  done" in printed and secret not in printed


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--scope", "all"], "A scope is one of complete, tune, promote, admin, but got 'all'"),
        (["--expires", "soon"], "Try 90d, 12h or 2027-06-30"),
        (["--expires", "2020-01-01"], "must end in the future"),
    ],
)
def test_a_key_that_cannot_be_is_refused_in_a_sentence(tmp_path: Path, arguments: list[str], rule: str) -> None:
    assert rule in graftline(tmp_path, "keys", "create", "bot", *arguments)
    assert not KeyStore(tmp_path).all()


def test_a_refused_revocation_is_audited_too(tmp_path: Path) -> None:
    assert "There are: none" in graftline(tmp_path, "keys", "revoke", "bot")
    ((entry,), _) = read_audit(tmp_path)
    assert (entry.act, entry.target, entry.outcome) == ("key.revoke", "bot", "failed")
