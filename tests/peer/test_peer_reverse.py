"""The request that swaps roles, over real connections."""

import json
from http.client import HTTPConnection

import pytest
from peer_kit import POINT, Host, code_of, raw_connection
from point_kit import OTHER_VM, VM
from pydantic import ValidationError

from vmreplica.peer.client import PeerClient
from vmreplica.peer.wire import ReverseRequest

pytestmark = pytest.mark.failover

REQUEST = ReverseRequest(
    vm=VM, name="web", epoch=1, interval=300, keep=24, point=POINT,
    checkpoint=f"vmreplica-01234567-{POINT}", network_map={"isolated": "bridge:br0"},
)  # fmt: skip


def test_it_arrives_with_the_name_of_the_caller(alpha: Host, beta: Host, client: PeerClient) -> None:
    position = client.reverse(REQUEST)
    assert (position.vm, position.epoch) == (VM, 1)
    assert alpha.service.reversed == [(beta.identity.host_id, REQUEST)]


def test_a_body_that_is_about_another_vm_than_the_address_is_refused(alpha: Host, raw: HTTPConnection) -> None:
    headers = {"Content-Type": "application/json"}
    raw.request("POST", f"/peer/v1/replicas/{OTHER_VM}/reverse", REQUEST.model_dump_json(), headers)
    answer = raw.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (400, "body-invalid")
    assert alpha.service.reversed == []


def test_a_stranger_is_refused(alpha: Host) -> None:
    raw = raw_connection(alpha)
    raw.request("POST", f"/peer/v1/replicas/{VM}/reverse", REQUEST.model_dump_json())
    assert raw.getresponse().status == 403
    assert alpha.service.reversed == []
    raw.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": 0},
        {"epoch": -1},
        {"interval": 1},
        {"keep": 0},
        {"point": "../../etc"},
        {"checkpoint": "a-foreign-one"},
        {"name": "../x"},
        {"network_map": {str(number): "x" for number in range(65)}},
        {"network_map": {"x": "a/b"}},
        {"path": "/etc/passwd"},
    ],
)
def test_what_a_hostile_peer_may_not_even_say(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ReverseRequest.model_validate({**REQUEST.model_dump(), **wrong})


def test_a_peer_that_was_removed_is_refused(alpha: Host, beta: Host, client: PeerClient) -> None:
    alpha.book.remove(beta.name)
    assert code_of(client.reverse, REQUEST) in {"peer-unknown", "peer-certificate-refused"}
    assert alpha.service.reversed == []
