"""Pairing real hosts over TLS on loopback."""

import datetime as dt
import socket
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from peer_kit import Host, Relay, code_of

from vmreplica.model.errors import Conflict, Refused, Unreachable
from vmreplica.peer import certificates
from vmreplica.peer.book import Peer, PeerBook
from vmreplica.peer.identity import utc_now
from vmreplica.peer.pairing import join
from vmreplica.peer.wire import PairRequest

pytestmark = pytest.mark.main_job


@pytest.fixture
def beta(tmp_path: Path) -> Host:
    return Host(tmp_path / "beta", "beta")


def _join(host: Host, token: str) -> str:
    return code_of(join, token, host.identity, host.book, ["127.0.0.1:1"])


def test_pairing_sets_up_both_directions(alpha: Host, beta: Host) -> None:
    with beta.serve():
        beta.joins(alpha)
        with beta.client_of(alpha) as there, alpha.client_of(beta) as back:
            assert (there.hello().name, back.hello().name) == ("alpha", "beta")
    assert alpha.book.by_name("beta").host_id == beta.identity.host_id
    assert beta.book.by_name("alpha").addresses[0] == alpha.address


def test_a_token_is_good_once(alpha: Host, beta: Host, tmp_path: Path) -> None:
    token = alpha.invite()
    assert _join(beta, token) == "no error"
    assert _join(beta, token) == "token-used"
    assert _join(Host(tmp_path / "gamma", "gamma"), token) == "token-used"
    assert [peer.name for peer in alpha.book.all()] == ["beta"]


def test_of_two_hosts_that_join_at_once_one_is_paired(alpha: Host, beta: Host, tmp_path: Path) -> None:
    token, gamma = alpha.invite(), Host(tmp_path / "gamma", "gamma")
    codes: list[str] = []
    threads = [threading.Thread(target=lambda host=host: codes.append(_join(host, token))) for host in (beta, gamma)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(codes) == ["no error", "token-used"]
    assert len(alpha.book.all()) == 1


def test_an_expired_token_is_told_before_anything_is_sent(beta: Host, tmp_path: Path) -> None:
    token = Host(tmp_path / "a", "alpha").invite("127.0.0.1:9")
    with pytest.raises(Refused) as refusal:
        join(token, beta.identity, beta.book, [], clock=lambda: utc_now() + dt.timedelta(minutes=20))
    assert refusal.value.code == "token-expired"
    assert "5m" in refusal.value.message
    assert "clocks" in refusal.value.hint


def test_a_token_that_expired_by_the_inviting_host_s_clock_is_refused_there(alpha: Host, beta: Host) -> None:
    token = alpha.invite()
    alpha.clock.ahead = dt.timedelta(minutes=16)
    assert _join(beta, token) == "token-expired"
    assert alpha.book.all() == beta.book.all() == ()


def test_a_token_for_another_host_is_refused_on_both_sides(alpha: Host, beta: Host) -> None:
    assert _join(beta, alpha.invite(for_name="gamma")) == "token-for-another-host"
    beta.identity.name = "gamma"
    assert _join(beta, alpha.invite(for_name="gamma")) == "no error"


def test_a_token_of_this_host_is_refused(alpha: Host) -> None:
    assert _join(alpha, alpha.invite()) == "token-of-this-host"


def test_a_truncated_token_is_told(alpha: Host, beta: Host) -> None:
    assert _join(beta, alpha.invite()[:-9]) == "token-unreadable"


def test_a_made_up_secret_is_refused_by_the_other_host(alpha: Host, beta: Host, tmp_path: Path) -> None:
    forger = Host(tmp_path / "forger", "forger")
    forger.identity = alpha.identity
    assert _join(beta, forger.invite(alpha.address)) == "token-unknown"


def test_whoever_answers_at_a_token_s_address_is_not_believed(alpha: Host, beta: Host, tmp_path: Path) -> None:
    with Host(tmp_path / "intruder", "alpha").serve() as intruder:
        assert _join(beta, alpha.invite(intruder.address)) == "token-for-another-host"
        assert intruder.book.all() == beta.book.all() == ()


def test_an_intruder_that_shows_the_right_ca_but_cannot_use_it_is_not_believed(
    alpha: Host, beta: Host, tmp_path: Path
) -> None:
    intruder = Host(tmp_path / "intruder", "alpha")
    intruder.identity.ca_pem = alpha.identity.ca_pem
    with intruder.serve():
        assert _join(beta, alpha.invite(intruder.address)) == "token-for-another-host"
        assert beta.book.all() == ()


def test_a_wrong_address_is_passed_over(alpha: Host, beta: Host, tmp_path: Path) -> None:
    with Host(tmp_path / "other", "other").serve() as other:
        assert _join(beta, alpha.invite("127.0.0.1:1", other.address, alpha.address)) == "no error"
    assert beta.book.by_name("alpha").addresses[0] == alpha.address


def test_addresses_that_do_not_answer_are_listed(alpha: Host, beta: Host) -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1: .*127\.0\.0\.1:2: "):
        join(alpha.invite("127.0.0.1:1", "127.0.0.1:2"), beta.identity, beta.book, [])


def test_a_port_where_something_else_answers_is_no_agent(alpha: Host, beta: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            with listener.accept()[0] as near:
                near.recv(4096)
                near.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert _join(beta, alpha.invite(f"127.0.0.1:{port}")) == "peer-unreachable"
        thread.join(10)


def test_two_hosts_of_one_name_cannot_be_paired_with_a_third(alpha: Host, beta: Host, tmp_path: Path) -> None:
    assert _join(beta, alpha.invite()) == "no error"
    token = alpha.invite()
    assert _join(Host(tmp_path / "beta2", "beta"), token) == "peer-name-taken"
    assert _join(Host(tmp_path / "gamma", "gamma"), token) == "no error", "the token was used up by the refusal"


def test_a_host_s_own_name_is_taken(alpha: Host, tmp_path: Path) -> None:
    assert _join(Host(tmp_path / "alpha2", "alpha"), alpha.invite()) == "peer-name-taken"


def test_a_name_that_another_peer_of_the_joining_host_has_is_told_before_the_token_is_used(
    alpha: Host, beta: Host, tmp_path: Path
) -> None:
    with Host(tmp_path / "old", "alpha").serve() as old:
        beta.joins(old)
    with pytest.raises(Conflict):
        beta.joins(alpha)
    assert alpha.book.all() == ()


def test_pairing_again_updates_what_is_known(alpha: Host, beta: Host) -> None:
    beta.joins(alpha)
    beta.identity.name = "beta-new"
    join(alpha.invite(), beta.identity, beta.book, ["192.0.2.7:7432"])
    (peer,) = alpha.book.all()
    assert (peer.name, peer.addresses) == ("beta-new", ("192.0.2.7:7432",))
    assert len(beta.book.all()) == 1


def test_nobody_is_paired_with_somebody_else_s_ca(alpha: Host, beta: Host, tmp_path: Path) -> None:
    gamma = Host(tmp_path / "gamma", "gamma")
    gamma.joins(alpha)
    own, beta.identity.ca_pem = beta.identity.ca_pem, gamma.identity.ca_pem
    token = alpha.invite()
    assert _join(beta, token) == "ca-not-owned"
    assert [peer.name for peer in alpha.book.all()] == ["gamma"]
    beta.identity.ca_pem = own
    assert _join(beta, token) == "no error", "the token was used up by the refusal"


def test_a_ca_that_imitates_a_peer_s_is_refused(alpha: Host, beta: Host, tmp_path: Path) -> None:
    gamma = Host(tmp_path / "gamma", "gamma")
    gamma.joins(alpha)
    real = x509.load_pem_x509_certificate(gamma.identity.ca_pem.encode())
    key, _ = certificates.make_ca("beta", utc_now())
    copy = (
        x509.CertificateBuilder(real.issuer, real.subject, key.public_key(), 7, utc_now(), real.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    beta.identity._ca_key, beta.identity.ca_pem = key, certificates.pem_of(copy)
    assert _join(beta, alpha.invite()) == "ca-not-owned"


class _Cutting(PeerBook):
    """A book that cuts a wire right after a host was written down."""

    wire: Relay | None = None

    def add(self, peer: Peer) -> None:
        super().add(peer)
        if self.wire:
            self.wire.cut()


def test_a_lost_answer_is_told_and_a_new_token_heals(beta: Host, tmp_path: Path) -> None:
    alpha = Host(tmp_path / "alpha", "alpha")
    book = alpha.book = _Cutting(alpha.state / "peers.json")
    with alpha.serve(), Relay(alpha.address) as wire:
        book.wire = wire
        assert _join(beta, alpha.invite(wire.address)) == "peer-unreachable"
        assert (len(alpha.book.all()), len(beta.book.all())) == (1, 0)
        book.wire = None
        assert _join(beta, alpha.invite(wire.address)) == "no error"


def test_hostile_pair_requests_are_refused_before_the_token_is_used(alpha: Host, beta: Host) -> None:
    with pytest.raises(ValueError, match="name"):
        PairRequest(secret="s" * 43, name="../beta", ca_pem=beta.identity.ca_pem, proof="", addresses=())
    token = alpha.invite()
    beta.identity.ca_pem = "garbage"
    assert _join(beta, token) == "ca-unusable"
    beta.identity.ca_pem = Host(beta.state, "beta").identity.ca_pem
    assert _join(beta, token) == "no error"
