"""Wires that are cut, peers that hang, answers that are lost."""

# ruff: noqa: D102 - the methods are those of PeerService, described there

import contextlib
import datetime as dt
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer_kit import CLOSING, OPENING, POINT, SUMMARY, Host, KeepingService, Relay, code_of, raw_connection
from point_kit import VM

from vmreplica.model.body import Buffers, joined
from vmreplica.model.errors import TimedOut, Unreachable
from vmreplica.peer import bodies
from vmreplica.peer.client import PeerClient
from vmreplica.peer.identity import utc_now

pytestmark = pytest.mark.main_job

_BODY = Buffers(os.urandom(1 << 20))


class CuttingService(KeepingService):
    """Does what it is asked, then cuts the wire before the answer is on it, as often as a test says."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.wire: Relay | None = None
        self.times = 0
        self.calls: list[str] = []

    def put_segment(self, peer: str, vm: str, point: str, target: str, number: int, body: memoryview) -> None:  # noqa: PLR0917
        super().put_segment(peer, vm, point, target, number, body)
        self._cut("put")

    def complete(self, *args: object) -> object:  # type: ignore[override]
        summary = super().complete(*args)  # type: ignore[arg-type]
        self._cut("complete")
        return summary

    def _cut(self, call: str) -> None:
        self.calls.append(call)
        if self.times and self.wire:
            self.times -= 1
            self.wire.cut()


@pytest.fixture
def service() -> type[KeepingService]:
    return CuttingService


def _move(host: Host, *addresses: str) -> None:
    """Let a host know its only peer under other addresses."""
    (peer,) = host.book.all()
    host.book.add(peer.model_copy(update={"addresses": addresses}))


@contextlib.contextmanager
def _silent() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_peer_that_accepts_and_never_answers_is_timed_out(alpha: Host, beta: Host) -> None:
    with _silent() as address:
        _move(beta, address)
        with beta.client_of(alpha, connect_timeout=0.2) as client:
            with pytest.raises(TimedOut, match=address) as told:
                client.hello()
            assert told.value.code == "peer-timeout"
            assert code_of(client.put_segment, VM, POINT, "vda", 0, _BODY) == "peer-timeout"


def test_a_service_that_hangs_is_timed_out_and_others_are_served(alpha: Host, beta: Host) -> None:
    gate = threading.Event()
    alpha.service.complete = lambda *_args: gate.wait(20) and SUMMARY
    with beta.client_of(alpha) as client:
        with pytest.raises(TimedOut):
            client.complete(VM, POINT, CLOSING, timeout=0.2)
        assert client.hello().name == "alpha"
        gate.set()


def test_a_peer_that_is_not_there_is_unreachable_with_every_address_named(alpha: Host, beta: Host) -> None:
    _move(beta, "127.0.0.1:1", "[::1]:1", "nowhere.invalid:7")
    with beta.client_of(alpha) as client, pytest.raises(Unreachable) as told:
        client.hello()
    for address in ("127.0.0.1:1", "[::1]:1", "nowhere.invalid:7"):
        assert address in told.value.message
    assert "firewall" in told.value.hint


def test_addresses_are_tried_in_order_and_the_good_one_is_remembered(alpha: Host, beta: Host) -> None:
    with _silent() as silent:
        _move(beta, "127.0.0.1:1", silent, alpha.address)
        with beta.client_of(alpha, connect_timeout=0.5) as client:
            client.hello()
            client.close()
            begun = time.monotonic()
            client.hello()
            assert time.monotonic() - begun < 0.4


@pytest.mark.parametrize("passed", [0, 300, 5000, 700_000])
def test_a_wire_cut_within_a_segment_leaves_nothing_and_the_next_try_goes_on(
    alpha: Host, beta: Host, passed: int
) -> None:
    with Relay(alpha.address, [passed]) as wire:
        _move(beta, wire.address)
        with beta.client_of(alpha) as client:
            assert code_of(client.put_segment, VM, POINT, "vda", 0, _BODY) == "peer-unreachable"
            assert alpha.service.segments == {}
            client.put_segment(VM, POINT, "vda", 0, _BODY)
    assert list(alpha.service.segments.values()) == [joined(_BODY)]


def test_bodies_that_were_cut_short_give_their_places_back(alpha: Host, beta: Host) -> None:
    tries = 2 * bodies.MAX_BODIES
    # After each failure one more connection finds out whether our certificate is refused; it is left alone.
    with Relay(alpha.address, [500_000, None] * tries) as wire:
        _move(beta, wire.address)
        with beta.client_of(alpha) as client:
            for _ in range(tries):
                assert code_of(client.put_segment, VM, POINT, "vda", 0, _BODY) == "peer-unreachable"
            client.put_segment(VM, POINT, "vda", 1, _BODY)
    assert len(alpha.service.segments) == 1


def test_a_connection_that_the_peer_closed_while_idle_is_replaced_unseen(alpha: Host, beta: Host) -> None:
    with Relay(alpha.address) as wire:
        _move(beta, wire.address)
        with beta.client_of(alpha) as client:
            client.hello()
            wire.cut()
            client.put_segment(VM, POINT, "vda", 0, _BODY)
            assert wire.connections == 2
    assert len(alpha.service.segments) == 1


def test_a_lost_acknowledgement_is_an_error_and_asking_again_finds_the_segment(alpha: Host, beta: Host) -> None:
    with Relay(alpha.address) as wire:
        _move(beta, wire.address)
        alpha.service.wire, alpha.service.times = wire, 1
        with beta.client_of(alpha) as client:
            assert code_of(client.put_segment, VM, POINT, "vda", 0, _BODY) == "peer-unreachable"
            assert client.open_point(OPENING).held[0].ranges == ((0, 1),)
    assert alpha.service.calls == ["put"]


def test_a_lost_answer_on_an_idle_connection_is_asked_for_once_more(alpha: Host, beta: Host) -> None:
    with Relay(alpha.address) as wire:
        _move(beta, wire.address)
        alpha.service.wire, alpha.service.times = wire, 1
        with beta.client_of(alpha) as client:
            client.hello()
            assert client.complete(VM, POINT, CLOSING).point == POINT
            alpha.service.times = 2
            assert code_of(client.complete, VM, POINT, CLOSING) == "peer-unreachable"
    assert alpha.service.calls == ["complete"] * 4


def test_a_sender_that_stops_is_given_up_and_its_place_is_free(tmp_path: Path) -> None:
    alpha, beta = Host(tmp_path / "alpha", "alpha"), Host(tmp_path / "beta", "beta")
    alpha.idle_limit = 0.3
    with alpha.serve():
        beta.joins(alpha)
        _stop_in_the_middle(alpha, beta)
        with beta.client_of(alpha) as client:
            client.put_segment(VM, POINT, "vda", 0, _BODY)
    assert len(alpha.service.segments) == 1


def _stop_in_the_middle(alpha: Host, beta: Host) -> None:
    context = beta.identity.client_context(alpha.identity.ca_pem)
    stuck = [raw_connection(alpha, context) for _ in range(bodies.MAX_BODIES_OF_ONE + 1)]
    for connection in stuck:
        connection.putrequest("PUT", f"/peer/v1/replicas/{VM}/points/{POINT}/vda/0")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders(b"the beginning")
    for connection in stuck:
        response = connection.getresponse()
        assert (response.status, b"peer-stopped-sending" in response.read()) == (504, True)
        connection.close()


def test_a_peer_that_speaks_another_language_is_told(alpha: Host, beta: Host) -> None:
    alpha.service.hello = lambda: OPENING
    with beta.client_of(alpha) as client:
        assert code_of(client.hello) == "peer-answer-unreadable"


def test_a_stopped_server_is_unreachable_and_a_started_one_is_found_again(tmp_path: Path) -> None:
    alpha, beta = Host(tmp_path / "alpha", "alpha"), Host(tmp_path / "beta", "beta")
    with alpha.serve():
        beta.joins(alpha)
        client = PeerClient(beta.identity, beta.book.by_name("alpha"))
        client.hello()
        port = int(alpha.address.split(":")[1])
    assert code_of(client.hello) == "peer-unreachable"
    with alpha.serve(port):
        assert client.hello().name == "alpha"
    client.close()


def test_an_expired_certificate_is_refused_and_a_renewed_one_is_used_by_the_same_client(tmp_path: Path) -> None:
    alpha, beta = Host(tmp_path / "alpha", "alpha"), Host(tmp_path / "beta", "beta")
    with alpha.serve():
        beta.joins(alpha)
        beta.identity._clock = lambda: utc_now() - dt.timedelta(days=400)
        beta.identity._leaf_ends = dt.datetime.min.replace(tzinfo=dt.UTC)
        assert beta.identity.refresh()
        with beta.client_of(alpha) as client:
            assert code_of(client.hello) == "peer-certificate-refused"
            beta.identity._clock = utc_now
            assert beta.identity.refresh()
            assert client.hello().name == "alpha"
