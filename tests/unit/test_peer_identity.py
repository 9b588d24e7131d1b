"""A host's identity on disk."""

import datetime as dt
import stat
from pathlib import Path

import pytest

from vmreplica.model.errors import Corrupt
from vmreplica.peer.identity import Identity, utc_now

pytestmark = pytest.mark.main_job


def _in_days(days: int) -> dt.datetime:
    return utc_now() + dt.timedelta(days=days)


def test_an_identity_is_the_same_when_it_is_loaded_again(tmp_path: Path) -> None:
    first = Identity.load_or_create(tmp_path / "pki", "alpha")
    again = Identity.load_or_create(tmp_path / "pki", "alpha")
    assert (again.host_id, again.ca_pem, again.leaf_ends) == (first.host_id, first.ca_pem, first.leaf_ends)


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path / "pki", "alpha")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "pki").iterdir()}
    assert modes == {"ca.pem": 0o600, "host.pem": 0o600}
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700


@pytest.mark.parametrize(("days", "renewed"), [(300, False), (310, True), (400, True)])
def test_a_leaf_is_replaced_at_load_when_less_than_60_days_are_left(tmp_path: Path, days: int, renewed: bool) -> None:
    first = Identity.load_or_create(tmp_path, "alpha")
    later = Identity.load_or_create(tmp_path, "alpha", clock=lambda: _in_days(days))
    assert (later.leaf_ends > first.leaf_ends) == renewed
    assert later.host_id == first.host_id


def test_a_leaf_is_replaced_while_the_host_runs(tmp_path: Path) -> None:
    days = [0]
    identity = Identity.load_or_create(tmp_path, "alpha", clock=lambda: _in_days(days[0]))
    generation = identity.generation
    assert not identity.refresh()
    days[0] = 320
    assert identity.refresh()
    assert identity.generation == generation + 1
    assert identity.leaf_ends > _in_days(600)


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_a_damaged_leaf_is_replaced(tmp_path: Path, content: bytes) -> None:
    first = Identity.load_or_create(tmp_path, "alpha")
    (tmp_path / "host.pem").write_bytes(content)
    again = Identity.load_or_create(tmp_path, "alpha")
    assert again.host_id == first.host_id
    again.server_context()


def test_a_leaf_of_another_host_is_replaced(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path / "a", "alpha")
    Identity.load_or_create(tmp_path / "b", "beta")
    (tmp_path / "a/host.pem").write_bytes((tmp_path / "b/host.pem").read_bytes())
    assert Identity.load_or_create(tmp_path / "a", "alpha").generation == 1


def test_a_damaged_ca_is_told_and_never_replaced(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path, "alpha")
    (tmp_path / "ca.pem").write_bytes(b"garbage")
    with pytest.raises(Corrupt) as refusal:
        Identity.load_or_create(tmp_path, "alpha")
    assert refusal.value.code == "identity-damaged"
    assert (tmp_path / "ca.pem").read_bytes() == b"garbage"


def test_a_damaged_ca_of_a_peer_is_told(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path, "alpha")
    with pytest.raises(Corrupt) as refusal:
        identity.client_context("garbage")
    assert refusal.value.code == "peer-book-damaged"
