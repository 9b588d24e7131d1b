"""The local API: real HTTP on a real unix socket."""

import asyncio
import contextlib
import http.client
import json
import socket as sockets
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from api_kit import NEW, OLD, SmallAgent, relation, serving
from prometheus_client.parser import text_string_to_metric_families

from vmreplica.api.app import MAX_BODY
from vmreplica.api.calls import Calls
from vmreplica.api.server import start_api
from vmreplica.model.errors import (
    BadRequest,
    Conflict,
    Corrupt,
    HypervisorError,
    NoSpace,
    Refused,
    TimedOut,
    Unreachable,
    VmReplicaError,
)
from vmreplica.model.keep import Keep
from vmreplica.model.networks import NetworksChange
from vmreplica.model.report import StatusReport, TaskReport

pytestmark = pytest.mark.main_job

CHANGE = NetworksChange(networks={"lan": "br0"}, unmap=("dmz",))


@pytest.fixture
def agent() -> SmallAgent:
    return SmallAgent()


@pytest.fixture
def socket(agent: SmallAgent, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "run" / "agent.sock"
    with serving(agent, path):
        yield path


def ask(socket: Path, method: str, path: str, body: object = None) -> tuple[int, str, Any]:
    """Send one request as any HTTP client would."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        connection.sock.settimeout(10)
        connection.sock.connect(str(socket))
        payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, payload)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    kind = answer.headers.get_content_type()
    return answer.status, kind, json.loads(content) if kind.endswith("json") else content


def test_the_socket_is_for_its_owner_and_group_only(socket: Path) -> None:
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o660


def test_status_is_the_report_of_the_agent(socket: Path, agent: SmallAgent) -> None:
    status, kind, body = ask(socket, "GET", "/v1/status")
    assert (status, kind) == (200, "application/json")
    assert StatusReport.model_validate(body) == agent.status(None)


def test_status_of_one_vm_asks_the_agent_for_that_vm(socket: Path, agent: SmallAgent) -> None:
    ask(socket, "GET", "/v1/status?vm=web")
    assert agent.asked == [("status", "web")]


@pytest.mark.parametrize(
    ("method", "path", "body", "expected", "status"),
    [
        ("GET", "points", None, ("points", "web"), 200),
        ("GET", "history", None, ("history", "web", 20), 200),
        ("GET", "history?limit=3", None, ("history", "web", 3), 200),
        ("POST", "enable", {"to": "backup1"}, ("enable", "web", "backup1", 300, (), None), 202),
        (
            "POST",
            "enable",
            {"to": "backup1", "every": 30, "excluded": ["vdb"], "keep": 3},
            ("enable", "web", "backup1", 30, ("vdb",), Keep(last=3)),
            202,
        ),
        ("POST", "doctor", {"trial": False}, ("doctor", "web", False), 200),
        ("POST", "disable", None, ("disable", "web", False), 204),
        ("POST", "disable", {"delete_copy": True}, ("disable", "web", True), 204),
        ("POST", "pause", None, ("pause", "web"), 204),
        ("POST", "release", None, ("release", "web"), 204),
        ("POST", "sync", None, ("sync", "web"), 202),
        ("GET", "failover-plan", None, ("plan_failover", "web", None), 200),
        ("GET", f"failover-plan?point={OLD}", None, ("plan_failover", "web", OLD), 200),
        ("GET", "cancel-plan", None, ("plan_cancel", "web", False), 200),
        ("GET", "cancel-plan?tests_only=true", None, ("plan_cancel", "web", True), 200),
        ("POST", "failover", {}, ("failover", "web", None), 200),
        ("POST", "failover", {"point": NEW}, ("failover", "web", NEW), 200),
        ("POST", "hand-over", {"to": "host2"}, ("hand_over", "web", "host2"), 200),
        ("GET", "networks", None, ("networks", "web"), 200),
        ("PUT", "networks", {"networks": {"lan": "br0"}, "unmap": ["dmz"]}, ("change_networks", "web", CHANGE), 200),
    ],
)
def test_each_act_on_a_vm_reaches_the_agent_as_it_was_sent(
    *, socket: Path, agent: SmallAgent, method: str, path: str, body: object, expected: tuple[object, ...], status: int
) -> None:
    assert ask(socket, method, f"/v1/vms/web/{path}", body)[0] == status
    assert agent.asked[-1] == expected


@pytest.mark.parametrize(
    ("method", "path", "body", "expected", "status"),
    [
        ("GET", "/v1/peers", None, ("peers",), 200),
        ("POST", "/v1/peers", {"token": " abc\n"}, ("join", "abc"), 201),
        ("POST", "/v1/invitations", {"for_name": "backup1"}, ("invite", "backup1"), 201),
        ("POST", "/v1/invitations", None, ("invite", None), 201),
        ("POST", "/v1/peers/backup1/test", None, ("test_peer", "backup1"), 200),
        ("DELETE", "/v1/peers/backup1", None, ("remove_peer", "backup1"), 204),
        ("GET", "/v1/tasks/t1", None, ("task", "t1"), 200),
        ("POST", "/v1/doctor", None, ("doctor", None, True), 200),
    ],
)
def test_each_act_on_hosts_and_tasks_reaches_the_agent(
    *, socket: Path, agent: SmallAgent, method: str, path: str, body: object, expected: tuple[object, ...], status: int
) -> None:
    assert ask(socket, method, path, body)[0] == status
    assert agent.asked[-1] == expected


@pytest.mark.parametrize("name", ["a b", "50%", "%41", "ü", "a?b#c", "a{b}", "a;b&c=d+e", "..", "'\"<>\\", "[x]"])
def test_a_vm_with_an_odd_name_is_found(socket: Path, agent: SmallAgent, name: str) -> None:
    agent.relations[name] = relation(name)
    status, _, body = ask(socket, "GET", f"/v1/vms/{quote(name, safe='')}/points")
    assert (status, body["name"]) == (200, name)


@pytest.mark.parametrize("name", ["a/b", "a\nb", "\x00", "-rf", "x" * 256])
def test_a_name_that_no_vm_can_have_never_reaches_the_agent(socket: Path, agent: SmallAgent, name: str) -> None:
    status, kind, body = ask(socket, "POST", f"/v1/vms/{quote(name, safe='')}/pause")
    assert (status, kind, body["code"]) == (400, "application/problem+json", "vm-name-invalid")
    assert agent.asked == []


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/v1/vms/web/enable", {}, "to"),
        ("/v1/vms/web/enable", {"to": "../x"}, "to"),
        ("/v1/vms/web/enable", {"to": "backup1", "every": 4}, "every"),
        ("/v1/vms/web/enable", {"to": "backup1", "every": "soon"}, "every"),
        ("/v1/vms/web/enable", {"to": "backup1", "keep": 0}, "keep"),
        ("/v1/vms/web/enable", {"to": "backup1", "excluded": ["/dev/sda"]}, "excluded.0"),
        ("/v1/vms/web/enable", {"to": "backup1", "colour": "red"}, "colour"),
        ("/v1/vms/web/failover", {"point": "../../etc"}, "point"),
        ("/v1/vms/web/disable", b"{not json", "JSON"),
        ("/v1/vms/web/disable", b"[]", "object"),
        ("/v1/vms/web/disable", b"\xff\xfe", "JSON"),
        ("/v1/peers", {"token": "  "}, "token"),
        ("/v1/invitations", {"for_name": "-x"}, "for_name"),
    ],
)
def test_a_wrong_body_is_refused_naming_the_field(
    socket: Path, agent: SmallAgent, path: str, body: object, place: str
) -> None:
    status, _, problem = ask(socket, "POST", path, body)
    assert (status, problem["code"]) == (400, "request-invalid")
    assert place in problem["message"]
    assert agent.asked == []


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "99999999999", "٣"])
def test_a_wrong_history_limit_is_refused(socket: Path, agent: SmallAgent, limit: str) -> None:
    status, _, problem = ask(socket, "GET", f"/v1/vms/web/history?limit={quote(limit)}")
    assert (status, problem["code"]) == (400, "limit-invalid")
    assert agent.asked == []


def test_a_wrong_point_of_a_plan_is_refused(socket: Path) -> None:
    assert ask(socket, "GET", "/v1/vms/web/failover-plan?point=x")[2]["code"] == "point-id-invalid"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "route-unknown"),
        ("GET", "/v2/status", 404, "route-unknown"),
        ("GET", "/v1/vms//points", 404, "route-unknown"),
        ("DELETE", "/v1/status", 405, "method-not-allowed"),
    ],
)
def test_an_unknown_route_or_method_is_a_problem_too(
    socket: Path, method: str, path: str, status: int, code: str
) -> None:
    got, kind, problem = ask(socket, method, path)
    assert (got, kind, problem["code"], problem["status"]) == (status, "application/problem+json", code, status)


def test_a_body_that_is_too_large_is_a_problem_too(socket: Path) -> None:
    status, _, problem = ask(socket, "POST", "/v1/peers", b" " * (MAX_BODY + 1))
    assert (status, problem["code"]) == (413, "request-too-large")


@pytest.mark.parametrize(
    "error",
    [
        family("some-code", "web: it broke", hint="mend it")
        for family in (BadRequest, Refused, Conflict, Corrupt, NoSpace, Unreachable, HypervisorError, TimedOut)
    ],
)
def test_an_error_of_the_agent_is_answered_whole(socket: Path, agent: SmallAgent, error: VmReplicaError) -> None:
    agent.error = error
    status, kind, problem = ask(socket, "GET", "/v1/status")
    assert (status, kind) == (error.status, "application/problem+json")
    assert problem == error.problem().model_dump()


def test_a_defect_of_the_agent_is_a_problem_that_shows_no_internals(
    socket: Path, agent: SmallAgent, capfd: pytest.CaptureFixture[str]
) -> None:
    agent.error = ZeroDivisionError("secret detail")
    status, _, problem = ask(socket, "GET", "/v1/status")
    assert (status, problem["code"]) == (500, "agent-internal")
    assert "secret" not in json.dumps(problem)
    assert "secret detail" in "".join(capfd.readouterr())


def test_metrics_are_prometheus_text_about_each_vm(socket: Path, agent: SmallAgent) -> None:
    agent.relations['odd "name"'] = relation('odd "name"', point_age=None, last_cycle=None)
    status, kind, body = ask(socket, "GET", "/v1/metrics")
    assert (status, kind) == (200, "text/plain")
    samples = {
        (sample.name, sample.labels.get("name"), sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert samples["vmreplica_newest_point_age_seconds", "web", None] == 75
    assert ("vmreplica_newest_point_age_seconds", 'odd "name"', None) not in samples
    assert samples["vmreplica_health", 'odd "name"', None] == 0
    assert samples["vmreplica_last_cycle_wire_bytes", "web", None] == 2 << 20
    assert samples["vmreplica_state", "web", "replicating"] == 1
    assert samples["vmreplica_state", "web", "paused"] == 0


def test_a_slow_call_does_not_hold_up_others(socket: Path, agent: SmallAgent) -> None:
    agent.go_on.clear()
    slow = threading.Thread(target=ask, args=(socket, "POST", "/v1/vms/web/sync"))
    slow.start()
    try:
        assert agent.entered.wait(10)
        assert ask(socket, "GET", "/v1/nothing")[0] == 404
        agent.asked.clear()
        second = threading.Thread(target=ask, args=(socket, "GET", "/v1/status"))
        second.start()
        for _ in range(1000):
            if agent.asked:
                break
            second.join(0.01)
        assert agent.asked == [("status", None)]
    finally:
        agent.go_on.set()
        slow.join(10)
        second.join(10)


def test_a_running_request_is_answered_before_the_api_stops(agent: SmallAgent, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    answers: list[int] = []
    agent.go_on.clear()
    caller = threading.Thread(target=lambda: answers.append(ask(path, "POST", "/v1/vms/web/sync")[0]))
    with serving(agent, path):
        caller.start()
        assert agent.entered.wait(10)
        threading.Timer(0.2, agent.go_on.set).start()
    caller.join(10)
    assert answers == [202]
    assert not path.exists()


def test_whoever_asks_while_the_api_stops_is_answered_or_refused_and_never_left_waiting(
    agent: SmallAgent, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"

    def ask_on() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                ask(path, "GET", "/v1/status")

    for _ in range(5):
        callers = [threading.Thread(target=ask_on, daemon=True) for _ in range(3)]
        with serving(agent, path):
            for caller in callers:
                caller.start()
            time.sleep(0.05)
        for caller in callers:
            caller.join(10)
        assert not any(caller.is_alive() for caller in callers)


def test_a_second_agent_on_the_same_socket_is_refused(socket: Path) -> None:
    with pytest.raises(Conflict) as caught:
        asyncio.run(start_api(SmallAgent(), socket))
    assert caught.value.code == "agent-already-running"
    assert ask(socket, "GET", "/v1/status")[0] == 200


def test_a_socket_left_by_a_crashed_agent_is_replaced(agent: SmallAgent, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    left = sockets.socket(sockets.AF_UNIX)
    left.bind(str(path))
    left.close()
    with serving(agent, path):
        assert ask(path, "GET", "/v1/status")[0] == 200


def test_an_api_can_be_started_again_after_it_was_stopped(agent: SmallAgent, tmp_path: Path) -> None:
    for _ in range(2):
        with serving(agent, tmp_path / "agent.sock"):
            assert ask(tmp_path / "agent.sock", "GET", "/v1/status")[0] == 200
    assert {path.name for path in tmp_path.iterdir()} == {"agent.sock.lock"}


def test_a_file_in_the_place_of_the_socket_is_left_alone(agent: SmallAgent, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with pytest.raises(Conflict) as caught:
        asyncio.run(start_api(agent, path))
    assert caught.value.code == "socket-path-taken"
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "code"), [("x" * 110, "socket-path-too-long"), ("file/agent.sock", "socket-path-unusable")]
)
def test_a_path_that_cannot_be_a_socket_is_refused(agent: SmallAgent, tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest) as caught:
        asyncio.run(start_api(agent, tmp_path / name))
    assert caught.value.code == code
    assert str(tmp_path / name.partition("/")[0]) in caught.value.message


def test_more_waiting_calls_than_fit_are_refused_at_once() -> None:
    go_on = threading.Event()

    async def crowd() -> list[object]:
        calls = Calls(threads=1, max_pending=2)
        waiting = [asyncio.ensure_future(calls.run(lambda: go_on.wait(10))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Unreachable, match="2 requests waiting"):
            await calls.run(lambda: None)
        go_on.set()
        done = await asyncio.gather(*waiting)
        room = await calls.run(lambda: "room again")
        calls.close()
        return [*done, room]

    assert asyncio.run(crowd()) == [True, True, "room again"]


def test_an_enabled_vm_is_answered_with_its_task(socket: Path) -> None:
    _, _, body = ask(socket, "POST", "/v1/vms/db/enable", {"to": "backup1"})
    assert TaskReport.model_validate(body).progress is not None
