"""Requests of paired hosts over real connections: what arrives, what is refused, what is said."""

# ruff: noqa: D102, ARG002 - the methods are those of PeerService, described there

import asyncio
import concurrent.futures
import contextlib
import datetime as dt
import json
import os
import socket
import ssl
import threading
from http.client import HTTPConnection
from pathlib import Path

import pytest
from peer_kit import CLOSING, OFFER, OPENING, POINT, SUMMARY, Host, KeepingService, code_of, raw_connection
from point_kit import OTHER_VM, VM

from vmreplica.model.body import Buffers
from vmreplica.model.errors import BadRequest, Conflict, Corrupt, Internal, NoSpace, VmReplicaError
from vmreplica.model.export import AwaitedBase
from vmreplica.model.units import MiB
from vmreplica.peer.bodies import MAX_BODIES, MAX_BODIES_OF_ONE
from vmreplica.peer.client import PeerClient
from vmreplica.peer.server import make_app, start_server
from vmreplica.peer.wire import MAX_BODY, MAX_JSON, MAX_PAIR, MAX_SINK
from vmreplica.spool.segment_file import SegmentFile

pytestmark = pytest.mark.main_job


class FailingService(KeepingService):
    """Fails as a test says, at completing a point."""

    failure: Exception = Conflict("stale-epoch", "vda is behind")

    def complete(self, *args: object) -> object:  # type: ignore[override]
        raise self.failure


class CountingService(KeepingService):
    """Holds each segment until a test lets go, and counts how many are here at once."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.here = self.most = 0
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.full = threading.Semaphore(0)

    def put_segment(self, peer: str, vm: str, point: str, target: str, number: int, body: memoryview) -> None:  # noqa: PLR0917
        with self.lock:
            self.here += 1
            self.most = max(self.most, self.here)
        self.full.release()
        assert self.gate.wait(20)
        super().put_segment(peer, vm, point, target, number, body)
        with self.lock:
            self.here -= 1


class HoardingService(KeepingService):
    """Keeps looking at bodies after it was given them."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.views: list[memoryview] = []

    def put_segment(self, peer: str, vm: str, point: str, target: str, number: int, body: memoryview) -> None:  # noqa: PLR0917
        self.views.append(body[1:])
        super().put_segment(peer, vm, point, target, number, body)


def _problem(connection: HTTPConnection) -> tuple[int, str]:
    response = connection.getresponse()
    body = response.read()
    assert response.headers["Content-Type"].startswith("application/problem+json")
    return response.status, json.loads(body)["code"]


def test_every_request_reaches_the_service_with_the_caller_s_id(alpha: Host, beta: Host, client: PeerClient) -> None:
    me = beta.identity.host_id
    assert client.hello().host_id == alpha.identity.host_id
    assert client.offer(VM, OFFER) == client.position(VM)
    assert alpha.service.offers == {(me, VM): OFFER}
    assert client.points(VM).points == (SUMMARY,)
    assert client.open_point(OPENING).held[0].ranges == ()
    client.put_segment(VM, POINT, "vda", 0, Buffers(b"head", memoryview(b"data")))
    assert alpha.service.segments == {(me, VM, POINT, "vda", 0): b"headdata"}
    assert client.open_point(OPENING).held[0].ranges == ((0, 1),)
    assert client.complete(VM, POINT, CLOSING) == SUMMARY
    assert alpha.service.closed == [(me, VM, POINT, CLOSING)]
    base = AwaitedBase(export="0" * 16, opening=OPENING, closing=CLOSING, checksums="1" * 64)
    assert client.await_base(base) == SUMMARY
    client.give_up_base(VM)
    assert (alpha.service.awaited, alpha.service.given_up) == ([(me, base)], [(me, VM)])
    client.abandon(VM, POINT)
    client.remove(VM, delete_copy=False)
    client.remove(VM, delete_copy=True)
    assert alpha.service.abandoned == [(me, VM, POINT)]
    assert alpha.service.removed == [(me, VM, False), (me, VM, True)]
    assert client.runs_here(VM).epoch == 3


@pytest.mark.parametrize("size", [0, 1, 65535, 256 * 1024, 8 * MiB + 17, MAX_BODY])
def test_segments_of_all_sizes_arrive_as_they_were(alpha: Host, client: PeerClient, size: int) -> None:
    content = os.urandom(size)
    cut = size // 3
    client.put_segment(VM, POINT, "vda", 7, Buffers(content[:cut], b"", memoryview(content)[cut:]))
    assert list(alpha.service.segments.values()) == [content]


def test_a_shorter_segment_after_a_longer_one_carries_nothing_of_it(alpha: Host, client: PeerClient) -> None:
    client.put_segment(VM, POINT, "vda", 0, Buffers(bytes(100_000)))
    client.put_segment(VM, POINT, "vda", 1, Buffers(b"short"))
    assert [len(body) for body in alpha.service.segments.values()] == [100_000, 5]


def test_a_segment_that_cannot_be_read_to_its_end_arrives_not_at_all_and_the_line_is_good(
    alpha: Host, client: PeerClient, tmp_path: Path
) -> None:
    path = tmp_path / "segment"
    path.write_bytes(content := os.urandom(2 * MiB))
    with SegmentFile(path) as body:
        os.truncate(path, MiB)
        assert code_of(client.put_segment, VM, POINT, "vda", 0, body) == "spool-damaged"
        path.write_bytes(content)
        assert not alpha.service.segments
        client.put_segment(VM, POINT, "vda", 0, body)
    assert list(alpha.service.segments.values()) == [content]


@pytest.mark.parametrize("alpha", [HoardingService], indirect=True)
def test_a_body_that_the_service_kept_is_not_written_over(alpha: Host, client: PeerClient) -> None:
    for number in range(3):
        client.put_segment(VM, POINT, "vda", number, Buffers(bytes([number]) * 1000))
    assert [bytes(view) for view in alpha.service.views] == [bytes([number]) * 999 for number in range(3)]


@pytest.mark.parametrize("alpha", [CountingService], indirect=True)
def test_a_bounded_number_of_bodies_is_in_memory(alpha: Host, beta: Host, tmp_path: Path) -> None:
    gamma = Host(tmp_path / "gamma", "gamma")
    gamma.joins(alpha)
    service = alpha.service
    with (
        beta.client_of(alpha) as one,
        gamma.client_of(alpha) as two,
        concurrent.futures.ThreadPoolExecutor(12) as pool,
    ):
        sent = [pool.submit(one.put_segment, VM, POINT, "vda", number, Buffers(b"x" * 1000)) for number in range(6)]
        for _ in range(MAX_BODIES_OF_ONE):
            assert service.full.acquire(timeout=10)
        assert not service.full.acquire(timeout=0.2), "one peer took more than its places"
        sent += [pool.submit(two.put_segment, VM, POINT, "vda", number, Buffers(b"x" * 1000)) for number in range(6)]
        assert service.full.acquire(timeout=10), "a second peer found no place"
        assert not service.full.acquire(timeout=0.2), "more bodies than places"
        assert one.hello().name == "alpha", "bodies hold up other requests"
        service.gate.set()
        for each in sent:
            each.result(20)
    assert service.most == MAX_BODIES
    assert len(service.segments) == 12


def test_a_segment_that_is_too_large_is_not_sent(client: PeerClient) -> None:
    with pytest.raises(BadRequest) as refusal:
        client.put_segment(VM, POINT, "vda", 0, Buffers(bytes(MAX_BODY), b"x"))
    assert refusal.value.code == "body-too-large"


@pytest.mark.parametrize(
    ("method", "path", "length"),
    [
        ("PUT", f"/peer/v1/replicas/{VM}/points/{POINT}/vda/0", MAX_BODY + 1),
        ("PUT", f"/peer/v1/replicas/{VM}/points/{POINT}/vda/0", 1 << 62),
        ("PUT", "/peer/v1/sink", MAX_SINK + 1),
    ],
)
def test_a_body_that_announces_too_much_is_refused_unread(
    raw: HTTPConnection, method: str, path: str, length: int
) -> None:
    raw.request(method, path, headers={"Content-Length": str(length)})
    assert _problem(raw) == (400, "body-too-large")


@pytest.mark.parametrize(
    ("method", "path", "limit"),
    [("PUT", f"/peer/v1/replicas/{VM}", MAX_JSON), ("POST", "/peer/v1/pair", MAX_PAIR)],
)
def test_json_that_is_too_large_is_refused(raw: HTTPConnection, method: str, path: str, limit: int) -> None:
    raw.request(method, path, b" " * (limit + 1))
    assert _problem(raw) == (400, "body-too-large")


def test_a_segment_without_a_length_is_refused(raw: HTTPConnection) -> None:
    path = f"/peer/v1/replicas/{VM}/points/{POINT}/vda/0"
    raw.request("PUT", path, iter([b"data"]), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert _problem(raw) == (400, "length-required")


def test_a_compressed_body_is_not_unpacked(alpha: Host, raw: HTTPConnection) -> None:
    path = f"/peer/v1/replicas/{VM}/points/{POINT}/vda/0"
    raw.request("PUT", path, b"not gzip at all", {"Content-Encoding": "gzip"})
    assert raw.getresponse().status == 204
    assert list(alpha.service.segments.values()) == [b"not gzip at all"]


@pytest.mark.parametrize(
    "path",
    [
        "/replicas/..%2f..%2fetc",
        f"/replicas/{VM.upper().replace('1', 'A')}",
        f"/replicas/{VM}%0a",
        f"/replicas/{VM}%00",
        f"/replicas/{VM}/points/..%2F..%2Fx/vda/0",
        f"/replicas/{VM}/points/{POINT}x/vda/0",
        f"/replicas/{VM}/points/{POINT}/..%2fvda/0",
        f"/replicas/{VM}/points/{POINT}/%2e%2e%2f/0",
        f"/replicas/{VM}/points/{POINT}/vda/-1",
        f"/replicas/{VM}/points/{POINT}/vda/1_0",
        f"/replicas/{VM}/points/{POINT}/vda/%D9%A1",
        f"/replicas/{VM}/points/{POINT}/vda/01",
        f"/replicas/{VM}/points/{POINT}/vda/{10**12}",
    ],
)
def test_paths_that_are_no_ids_are_refused(alpha: Host, raw: HTTPConnection, path: str) -> None:
    raw.request("PUT", f"/peer/v1{path}", b"{}")
    status, code = _problem(raw)
    assert (status, code) == (400, "parameter-invalid")
    assert alpha.service.segments == alpha.service.offers == {}


def test_a_literal_way_up_leads_nowhere(alpha: Host, raw: HTTPConnection) -> None:
    raw.request("PUT", f"/peer/v1/replicas/{VM}/points/../../../../etc/passwd", b"x")
    assert _problem(raw)[0] in {400, 404}
    assert alpha.service.segments == {}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"name":1}', b"\xff\xfe", b"[" * 100_000, b'{"name":"a"}'])
def test_json_that_is_no_offer_is_refused(alpha: Host, raw: HTTPConnection, body: bytes) -> None:
    raw.request("PUT", f"/peer/v1/replicas/{VM}", body)
    assert _problem(raw) == (400, "body-invalid")
    assert alpha.service.offers == {}


def test_unknown_fields_are_refused(raw: HTTPConnection) -> None:
    raw.request("PUT", f"/peer/v1/replicas/{VM}", json.dumps({**OFFER.model_dump(), "backing": "/etc/shadow"}))
    assert _problem(raw) == (400, "body-invalid")


def test_an_opening_for_another_vm_than_the_path_s_is_refused(alpha: Host, raw: HTTPConnection) -> None:
    raw.request("PUT", f"/peer/v1/replicas/{OTHER_VM}/points/{POINT}", OPENING.model_dump_json())
    assert _problem(raw) == (400, "body-invalid")
    assert alpha.service.openings == []


def test_a_removal_that_does_not_say_what_becomes_of_the_copy_is_refused(alpha: Host, raw: HTTPConnection) -> None:
    for query in ("", "?copy=", "?copy=burn"):
        raw.request("DELETE", f"/peer/v1/replicas/{VM}{query}")
        assert _problem(raw) == (400, "parameter-invalid")
    assert alpha.service.removed == []


def test_unknown_requests_are_named(raw: HTTPConnection) -> None:
    raw.request("GET", "/peer/v1/nothing")
    assert _problem(raw) == (404, "request-unknown")
    raw.request("PATCH", "/peer/v1/hello")
    assert _problem(raw) == (400, "request-invalid")


@pytest.mark.parametrize("alpha", [FailingService], indirect=True)
@pytest.mark.parametrize(
    "failure",
    [
        Conflict("stale-epoch", "web is behind", hint="look there"),
        Corrupt("segment-digest", "segment 3 of vda"),
        NoSpace("no-space", "the store is full", hint="make room"),
    ],
)
def test_errors_of_the_service_arrive_as_they_were_raised(
    alpha: Host, client: PeerClient, failure: VmReplicaError
) -> None:
    alpha.service.failure = failure
    with pytest.raises(type(failure)) as told:
        client.complete(VM, POINT, CLOSING)
    assert told.value.problem() == failure.problem()


@pytest.mark.parametrize("alpha", [FailingService], indirect=True)
def test_a_defect_is_logged_here_and_says_nothing_of_itself_to_the_peer(
    alpha: Host, client: PeerClient, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha.service.failure = KeyError("/secret/path")
    with pytest.raises(Internal) as told:
        client.complete(VM, POINT, CLOSING)
    assert told.value.code == "internal"
    assert "secret" not in str(told.value) + told.value.hint
    assert "/secret/path" in capsys.readouterr().out
    assert client.hello().name == "alpha"


def test_the_connection_test_measures_what_is_there(alpha: Host, client: PeerClient) -> None:
    found = client.measure()
    assert (found.name, found.address, found.host_id) == ("alpha", alpha.address, alpha.identity.host_id)
    assert found.findings == ()
    assert abs(found.clock_difference_seconds) < 1
    assert 0 < found.round_trip_ms < 1000
    assert found.send_bytes_per_second > MiB
    assert found.store_free_bytes == 1 << 40
    assert abs((found.certificate_expires - alpha.identity.leaf_ends).total_seconds()) < 1


def test_the_connection_test_tells_a_clock_that_is_off(alpha: Host, client: PeerClient) -> None:
    alpha.service.clock_ahead = dt.timedelta(seconds=-90)
    found = client.measure()
    assert found.clock_difference_seconds == pytest.approx(-90, abs=1)
    assert "behind" in found.findings[0]


def test_requests_follow_each_other_on_one_connection(alpha: Host, beta: Host) -> None:
    hellos: list[str] = []
    with beta.client_of(alpha) as client:
        context = client._connections._context

        def counted() -> ssl.SSLContext:
            hellos.append("connection")
            return context()

        client._connections._context = counted
        for number in range(20):
            client.put_segment(VM, POINT, "vda", number, Buffers(bytes(100_000)))
        client.hello()
    assert hellos == ["connection"]


def test_an_address_in_use_is_told(alpha: Host) -> None:
    async def again() -> None:
        app = make_app(alpha.identity, alpha.book, alpha.invitations, [], alpha.service)
        await start_server(app, alpha.identity, "127.0.0.1", int(alpha.address.split(":")[1]))

    assert code_of(asyncio.run, again()) == "cannot-listen"


def test_bytes_that_are_no_http_end_the_connection_and_nothing_else(
    alpha: Host, beta: Host, client: PeerClient
) -> None:
    for garbage in (b"\x00" * 500, b"GET / HTTP/9.9\r\n\r\n", b"A" * 100_000):
        connection = raw_connection(alpha, beta.identity.client_context(alpha.identity.ca_pem))
        with connection.sock as tls:
            tls.settimeout(10)
            said = b""
            # The other side may hang up before it has read everything.
            with contextlib.suppress(ssl.SSLEOFError, ConnectionError):
                tls.sendall(garbage)
                said = tls.recv(4096)
            assert b"200" not in said
    with socket.create_connection(("127.0.0.1", int(alpha.address.split(":")[1]))) as plain:
        plain.sendall(b"GET /peer/v1/hello HTTP/1.1\r\n\r\n")
        plain.settimeout(10)
        assert b"alpha" not in plain.recv(4096)
    assert client.hello().name == "alpha"
