"""Pairing and peers that are not what they should be: tokens, foreign authorities, two primaries of one VM."""

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_kit import Blank, cycles, enable, inside, points, refusal, relation, same_content, wait_cycles

from vmreplica.lab import Host, Lab

pytestmark = pytest.mark.main_job


def test_a_token_works_once(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    token = a.ask("peer", "invite")["token"]
    assert b.ask("peer", "join", token)["name"] == "a"
    code, error = refusal(b, "peer", "join", token)
    assert (code, error["code"]) == (4, "token-used")
    assert "vmreplica peer invite" in error["hint"]
    assert b.ask("peer", "test", "a")["name"] == "a", "the pairing that stood still stands"


def test_a_token_that_has_expired_is_refused_by_the_host_that_made_it(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    token = a.ask("peer", "invite")["token"]
    a.stop_agent()
    kept = a.layout.state_dir / "invitations.json"
    stored = json.loads(kept.read_text())
    for invitation in stored["invitations"]:
        invitation["expires"] = (dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)).isoformat()
    kept.write_text(json.dumps(stored))
    a.start_agent()
    code, error = refusal(b, "peer", "join", token)
    assert (code, error["code"]) == (4, "token-expired")
    assert "vmreplica peer invite" in error["hint"]


def test_a_token_for_another_host_is_refused(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    code, error = refusal(b, "peer", "join", a.ask("peer", "invite", "--for", "c")["token"])
    assert (code, error["code"]) == (4, "token-for-another-host")
    assert "--for b" in error["hint"]


def test_nonsense_and_ones_own_token_are_refused(lab: Lab) -> None:
    a = lab.host("a")
    assert refusal(a, "peer", "join", "nonsense")[1]["code"] == "token-unreadable"
    assert refusal(a, "peer", "join", a.ask("peer", "invite")["token"])[1]["code"] == "token-of-this-host"


@pytest.fixture
def three(lab_dir: Path) -> Iterator[Lab]:
    """Hosts a and c, both paired with b."""
    lab = Lab.up(lab_dir, hosts=3)
    lab.pair("a", "b")
    lab.pair("c", "b")
    yield lab
    lab.down()


def test_a_host_gets_at_nothing_of_another_s_vm_and_at_nothing_at_all_once_it_is_unpaired(three: Lab) -> None:
    a, b, c = (three.host(name) for name in "abc")
    vm = Blank(a, "shared")
    vm.start()
    vm.write("vda", "0", "1M", 1)
    enable(a, vm.name)
    twin = Blank(c, "shared", vm=vm.uuid)
    twin.start()
    twin.write("vda", "0", "1M", 2)

    code, error = refusal(c, "enable", "shared", "--to", "b")
    assert (code, error["code"]) == (4, "replica-of-another-host")
    assert refusal(c, "points", "shared")[1]["code"] == "not-protected"
    _expect_no_entry_by_forged_policy(a, c, vm)
    wait_cycles(a, vm.name, len(cycles(a, vm.name)) + 1)
    newest = points(b, vm.name)[-1]["point"]
    assert same_content(vm.images["vda"], inside(b, b.layout.store / vm.uuid / "points" / newest / "vda.qcow2"))
    assert relation(b, vm.name)["peer"] == "a"

    b.ask("peer", "remove", "c", "--yes")
    other = Blank(c, "own")
    other.start()
    code, error = refusal(c, "enable", "own", "--to", "b")
    assert code == 4, error
    assert "peer" in error["code"]
    assert "vmreplica peer invite" in error["hint"]
    assert not inside(b, b.layout.store / other.uuid).exists()


def _expect_no_entry_by_forged_policy(a: Host, c: Host, vm: Blank) -> None:
    """A host that says it protects the VM to b (metadata copied with the definition) ships nothing there."""
    xml = a.virsh("dumpxml", "--inactive", vm.name).stdout
    begin, end = xml.index("<metadata>"), xml.index("</metadata>")
    forged = c.virsh("dumpxml", "--inactive", vm.name).stdout
    forged = forged.replace("</uuid>", "</uuid>" + xml[begin:end] + "</metadata>", 1)
    c.exec(["virsh", "-q", "-c", c.layout.uri, "define", "/dev/stdin"], stdin=forged)
    c.stop_agent()
    c.start_agent()
    code, error = refusal(c, "sync", vm.name)
    assert (code, error["code"]) == (4, "not-your-replica"), error
