"""Invitations: good once, for a while, for whom they are meant."""

# ruff: noqa: D102 - the names of the kit say what it does

import datetime as dt
import threading
from pathlib import Path

import pytest

from vmreplica.model.errors import BadRequest, Refused, VmReplicaError
from vmreplica.peer.identity import Identity
from vmreplica.peer.invitations import LIFE, Invitations
from vmreplica.peer.token import decode

pytestmark = pytest.mark.main_job


class Kit:
    """Invitations on disk, with a clock to move."""

    def __init__(self, path: Path) -> None:
        self.now = dt.datetime(2026, 11, 22, 10, tzinfo=dt.UTC)
        self.path = path / "invitations.json"
        self.identity = Identity.load_or_create(path / "pki", "alpha")
        self.invitations = Invitations(self.path, self.clock)

    def clock(self) -> dt.datetime:
        return self.now

    def secret(self, for_name: str | None = None) -> str:
        return decode(self.invitations.invite(self.identity, ["192.0.2.7:7432"], for_name).token).secret

    def code(self, secret: str, name: str = "beta") -> str:
        try:
            self.invitations.redeem(secret, name)
        except Refused as error:
            return error.code
        return "redeemed"


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def test_an_invitation_is_good_once(kit: Kit) -> None:
    secret = kit.secret()
    kit.invitations.check(secret, "beta")
    assert [kit.code(secret), kit.code(secret)] == ["redeemed", "token-used"]


def test_a_used_invitation_stays_used_after_a_restart(kit: Kit) -> None:
    secret, fresh = kit.secret(), kit.secret()
    kit.invitations.redeem(secret, "beta")
    kit.invitations = Invitations(kit.path, kit.clock)
    assert [kit.code(secret), kit.code(fresh)] == ["token-used", "redeemed"]


def test_of_many_attempts_at_once_one_succeeds(kit: Kit) -> None:
    secret, codes, gate = kit.secret(), list[str](), threading.Barrier(8)

    def attempt() -> None:
        gate.wait(10)
        codes.append(kit.code(secret))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(codes) == ["redeemed"] + 7 * ["token-used"]


def test_an_invitation_expires_after_its_life(kit: Kit) -> None:
    first, second = kit.secret(), kit.secret()
    kit.now += LIFE - dt.timedelta(seconds=1)
    assert kit.code(first) == "redeemed"
    kit.now += dt.timedelta(seconds=1)
    assert kit.code(second) == "token-expired"


def test_an_invitation_for_one_host_is_refused_to_another_and_stays_good(kit: Kit) -> None:
    secret = kit.secret("beta")
    assert [kit.code(secret, "gamma"), kit.code(secret, "beta")] == ["token-for-another-host", "redeemed"]


def test_the_secret_is_not_on_disk(kit: Kit) -> None:
    secret = kit.secret()
    assert secret not in kit.path.read_text()


def test_old_invitations_are_cleaned_up(kit: Kit) -> None:
    secret = kit.secret()
    kit.now += dt.timedelta(days=2)
    kit.secret()
    assert kit.path.read_text().count("secret_sha256") == 1
    assert kit.code(secret) == "token-unknown"


def test_guessing_is_stopped_for_a_minute(kit: Kit) -> None:
    good = kit.secret()
    assert {kit.code(f"guess {number}") for number in range(20)} == {"token-unknown"}
    assert kit.code(good) == "too-many-attempts"
    kit.now += dt.timedelta(minutes=1)
    assert kit.code(good) == "redeemed"


def test_a_damaged_file_voids_invitations_and_hinders_nothing(kit: Kit) -> None:
    secret = kit.secret()
    kit.path.write_text("garbage")
    kit.invitations = Invitations(kit.path, kit.clock)
    assert kit.code(secret) == "token-unknown"
    assert kit.code(kit.secret()) == "redeemed"


@pytest.mark.parametrize("addresses", [[], ["no address!"], ["192.0.2.7:99999"]])
def test_an_invitation_without_usable_addresses_is_refused(kit: Kit, addresses: list[str]) -> None:
    with pytest.raises(VmReplicaError) as refusal:
        kit.invitations.invite(kit.identity, addresses)
    assert isinstance(refusal.value, BadRequest)
    assert "advertise" in refusal.value.hint
