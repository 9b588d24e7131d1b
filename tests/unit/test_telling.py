"""Hook and webhook: a real program and a real server are told, whatever they do, and nobody waits for them."""

import datetime as dt
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from vmreplica.agent.config import HealthSection
from vmreplica.agent.hook_command import HookCommand
from vmreplica.agent.journal import Journal
from vmreplica.agent.telling import MAX_WAITING, Telling
from vmreplica.agent.webhook import Webhook, signature
from vmreplica.model.errors import Conflict
from vmreplica.model.health import Health, Level, Reason
from vmreplica.model.telling import HealthMessage

pytestmark = pytest.mark.points

VM = "11111111-2222-3333-4444-555555555555"
RUNS_ON = threading.Event()
ILL = Health(level=Level.CRITICAL, reasons=(Reason(code="rpo-exceeded", level=Level.CRITICAL, text="old"),))


def message(name: str = "web") -> HealthMessage:
    return HealthMessage(
        at=dt.datetime.now(dt.UTC),
        host="alpha",
        host_id="a" * 32,
        vm=VM,
        name=name,
        role="primary",
        peer="beta",
        state="replicating",
        was=Health(level=Level.NORMAL),
        health=ILL,
    )


def until(holds: Callable[[], bool], limit: float = 20.0) -> bool:
    end = time.monotonic() + limit
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Service:
    """A real HTTP server that notes what it is sent and answers what ``statuses`` says, the last one for ever."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses = [200]
        self.open = threading.Event()
        self.open.set()
        #: Seconds between the bytes of its answer; 0: all at once.
        self.dribble = 0.0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.got.append((self.path, dict(self.headers.items()), body))
                service.open.wait(20)
                if service.dribble:
                    return service._dribble(self.wfile.write)
                status = service.statuses.pop(0) if len(service.statuses) > 1 else service.statuses[0]
                self.send_response(status)
                self.send_header("Location", "https://elsewhere.example.com/")
                self.end_headers()
                return None

            def log_message(self, *_args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def url(self, rest: str = "/alerts?token=geheim") -> str:
        """Tell its address, with a secret in it."""
        return f"{self.scheme}://127.0.0.1:{self._server.server_address[1]}{rest}"

    def close(self) -> None:
        """End it."""
        self.open.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _dribble(self, write: Callable[[bytes], object]) -> None:
        for byte in b"HTTP/1.0 200 OK\r\n" + b"X" * 1000:
            try:
                write(bytes([byte]))
            except OSError:
                return
            time.sleep(self.dribble)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


def program(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# ---- the hook


def test_the_hook_gets_the_message_on_its_input_and_the_gist_in_its_environment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = f'cat > {out}; echo "$VMREPLICA_NAME $VMREPLICA_WAS $VMREPLICA_HEALTH $VMREPLICA_REASONS" >> {out}'
    assert HookCommand(program(tmp_path, text), 20).tell(message(), RUNS_ON) is None
    document, gist = out.read_text().splitlines()
    assert HealthMessage.model_validate_json(document).health == ILL
    assert gist == "web normal critical rpo-exceeded"


def test_a_hook_that_fails_is_missing_or_hangs_is_said_so_and_ended_with_its_children(tmp_path: Path) -> None:
    assert HookCommand(program(tmp_path, "exit 3"), 20).tell(message(), RUNS_ON) == "it ended with exit code 3"
    missing = HookCommand(tmp_path / "nothing", 20).tell(message(), RUNS_ON)
    assert missing == "it cannot be run: No such file or directory"
    pid = tmp_path / "pid"
    began = time.monotonic()
    why = HookCommand(program(tmp_path, f"sleep 300 & echo $! > {pid}; wait"), 1).tell(message(), RUNS_ON)
    assert why == "it did not end within 1 s and was killed"
    assert time.monotonic() - began < 15
    assert until(lambda: not _alive(int(pid.read_text())))


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_hook_ends_with_the_agent(tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    why = HookCommand(program(tmp_path, "sleep 300"), 200).tell(message(), stopping)
    assert why == "it was killed as the agent ends"


# ---- the webhook


def test_a_webhook_is_posted_once_and_signed_if_there_is_a_secret(service: Service, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sesam\n")
    assert Webhook(service.url(), 10, secret_file=secret).tell(message(), RUNS_ON) is None
    ((path, headers, body),) = service.got
    assert path == "/alerts?token=geheim"
    assert HealthMessage.model_validate_json(body).name == "web"
    assert headers["X-VMReplica-Event"] == "health"
    assert headers["X-VMReplica-Signature"] == signature(b"sesam", headers["X-VMReplica-Timestamp"], body)
    assert abs(int(headers["X-VMReplica-Timestamp"]) - time.time()) < 60


def test_a_login_in_the_address_is_sent_as_a_header(service: Service) -> None:
    assert Webhook(service.url().replace("//", "//user:pass%20word@"), 10).tell(message(), RUNS_ON) is None
    assert service.got[0][1]["Authorization"] == "Basic dXNlcjpwYXNzIHdvcmQ="


@pytest.mark.parametrize(
    ("statuses", "attempts", "why"),
    [
        ([503, 429, 200], 3, None),
        ([500], 3, "it answered with HTTP status 500"),
        ([404], 1, "it answered with HTTP status 404"),
        ([302], 1, "it answered with HTTP status 302"),
    ],
)
def test_what_may_pass_is_tried_again_a_few_times(
    service: Service, statuses: list[int], attempts: int, why: str | None
) -> None:
    service.statuses = statuses
    assert Webhook(service.url(), 10, retries=(0.0, 0.0)).tell(message(), RUNS_ON) == why
    assert len(service.got) == attempts
    assert len({headers["X-VMReplica-Delivery"] for _path, headers, _body in service.got}) == 1


def test_a_service_that_is_away_or_answers_byte_by_byte_costs_bounded_time(service: Service) -> None:
    service.dribble = 0.05
    began = time.monotonic()
    why = Webhook(service.url(), 0.5, retries=()).tell(message(), RUNS_ON)
    assert why is not None
    assert time.monotonic() - began < 15
    away = service.url()
    service.close()
    assert Webhook(away, 5, retries=()).tell(message(), RUNS_ON) == "Connection refused"


def test_a_secret_that_cannot_be_read_is_never_left_out(service: Service, tmp_path: Path) -> None:
    why = Webhook(service.url(), 10, secret_file=tmp_path / "nothing").tell(message(), RUNS_ON)
    assert why == "the file of its secret cannot be read: No such file or directory"
    assert service.got == []


def test_https_needs_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    certificate = _certificate(tmp_path)
    service = Service(certificate)
    try:
        why = Webhook(service.url(), 10, retries=(0.0,)).tell(message(), RUNS_ON)
        assert why is not None
        assert why.startswith("its certificate is not trusted: ")
        assert Webhook(service.url(), 10, ca_file=certificate).tell(message(), RUNS_ON) is None
        assert len(service.got) == 1
    finally:
        service.close()


def test_a_tls_failure_that_is_not_about_the_certificate_is_told_by_its_reason(service: Service) -> None:
    why = Webhook(service.url().replace("http:", "https:"), 10, retries=()).tell(message(), RUNS_ON)
    assert why is not None
    assert why.startswith("no TLS connection can be made with it: ")
    assert "WRONG_VERSION_NUMBER" in why or "RECORD" in why
    assert service.got == []


def _certificate(tmp_path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    import ipaddress  # noqa: PLC0415 - here only

    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + encoded)
    return path


# ---- both


def test_whoever_has_something_to_tell_never_waits_and_what_is_too_much_is_dropped(
    service: Service, journal: Journal
) -> None:
    service.open.clear()
    telling = Telling(HealthSection(webhook=service.url(), webhook_limit=20), journal)
    telling.start()
    telling.put(message("first"))
    assert until(lambda: len(service.got) == 1)
    began = time.monotonic()
    with capture_logs() as logs:
        for number in range(MAX_WAITING + 3):
            telling.put(message(f"vm{number}"))
    assert time.monotonic() - began < 5
    assert [log["name"] for log in logs] == ["vm0", "vm1", "vm2"]
    service.open.set()
    assert until(lambda: len(service.got) == 1 + MAX_WAITING)
    told = [json.loads(body)["name"] for _path, _headers, body in service.got]
    assert told == ["first", *(f"vm{number}" for number in range(3, MAX_WAITING + 3))]
    telling.stop()


def test_a_failure_is_in_the_journal_and_no_secret_of_the_address_is_anywhere(
    service: Service, journal: Journal
) -> None:
    service.statuses = [403]
    url = service.url().replace("//", "//user:passwort@")
    telling = Telling(HealthSection(webhook=url), journal)
    with capture_logs() as logs:
        telling.start()
        telling.put(message())
        assert until(lambda: journal.newest() > 0)
        result = telling.test(message()).webhook
        telling.stop()
    (event,) = journal.events(limit=9)
    assert (event.kind, event.code, event.vm) == ("notice", "webhook-failed", VM)
    assert result is not None
    assert not result.ok
    for text in (str(logs), event.model_dump_json(), result.model_dump_json()):
        assert "geheim" not in text
        assert "passwort" not in text
    assert str(logs).count("403") == 1


def test_a_hanging_hook_does_not_keep_the_webhook_waiting(service: Service, journal: Journal, tmp_path: Path) -> None:
    section = HealthSection(hook=program(tmp_path, "sleep 300"), webhook=service.url())
    telling = Telling(section, journal)
    telling.start()
    telling.put(message())
    assert until(lambda: len(service.got) == 1)
    began = time.monotonic()
    telling.stop()
    assert time.monotonic() - began < 10


def test_a_test_without_anybody_to_tell_is_refused(journal: Journal) -> None:
    with pytest.raises(Conflict) as refused:
        Telling(HealthSection(), journal).test(message())
    assert refused.value.code == "nobody-to-tell"


@pytest.mark.parametrize(
    "address", ["ftp://x/", "https://", "alerts", "https://a b/", "http://[::1", "https://x:99999/"]
)
def test_an_address_that_is_none_is_refused_without_being_repeated(address: str) -> None:
    with pytest.raises(ValueError, match="must be an address such as") as refused:
        HealthSection(webhook=address)
    assert refused.value.errors()[0]["msg"].endswith("https://alerts.example.com/vmreplica")  # type: ignore[attr-defined]


def test_relative_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="absolute"):
        HealthSection(hook=Path("hook"))
