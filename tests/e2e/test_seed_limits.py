"""When and how fast: rates on the wire, changes while it runs, beginnings that are set, pauses that lose nothing."""

import datetime as dt
import json
import os
import re
import time
from collections.abc import Iterator

import pytest
from job_kit import (
    Blank,
    Document,
    NewBlank,
    enable,
    images,
    points,
    refusal,
    same_content,
)

from vmreplica.api.requests import EnableRequest, LimitRequest
from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.lab import Lab
from vmreplica.lab.waiting import until
from vmreplica.model.rates import parse_limit
from vmreplica.model.units import KiB, MiB

pytestmark = pytest.mark.seeding

#: Most bytes of a segment on its way: what a pause may cost.
OPEN_SEGMENT = 9 * MiB


def fill(vm: Blank, size: int, target: str = "vda") -> None:
    """Let the guest's device write bytes that do not compress."""
    source = vm.host.layout.images / f"{vm.name}.bytes"
    source.write_bytes(os.urandom(size))
    device = f"/machine/peripheral/virtio-disk{ord(target[-1]) - ord('a')}/virtio-backend"
    for act in (f"write -s {source} 0 {size}", "flush"):
        said = vm.host.virsh("qemu-monitor-command", vm.name, "--hmp", f'qemu-io -d {device} "{act}"').stdout
        assert "rror" not in said, said


def api(vm: Blank) -> AgentClient:
    """Give the agent of a VM's host, asked over its socket: sparing the time that the command line takes to start."""
    return AgentClient(vm.host.layout.agent_socket)


def begin(vm: Blank, *rates: str, every: int = 86400, at: dt.datetime | None = None) -> None:
    """Protect a VM without waiting for its initial replication."""
    body = EnableRequest(to="b", every=every, limit=parse_limit(rates), at=at)
    api(vm).send("POST", vm_path(vm.name, "enable"), body, timeout=60)


def ask(vm: Blank, verb: str) -> None:
    """Pause, resume or run a cycle."""
    api(vm).send("POST", vm_path(vm.name, verb), timeout=60)


def limit(vm: Blank, *rates: str) -> None:
    """Change a VM's rates."""
    api(vm).send("PUT", vm_path(vm.name, "limit"), LimitRequest(limit=parse_limit(rates)))


def shown(vm: Blank) -> Document:
    """Tell a VM's status."""
    (found,) = json.loads(api(vm).get("/v1/status", vm=vm.name))["relationships"]
    assert isinstance(found, dict)
    return found


def published(vm: Blank) -> list[Document]:
    """List the published cycles of a VM, oldest first."""
    found = json.loads(api(vm).get(vm_path(vm.name, "history"), limit="1000"))["cycles"]
    return [cycle for cycle in reversed(found) if cycle["outcome"] == "published"]


def wait_published(vm: Blank, count: int, limit: float = 60.0) -> list[Document]:
    """Wait for so many published cycles; gives all, oldest first."""
    assert until(lambda: len(published(vm)) >= count, limit), shown(vm)
    return published(vm)


def job(vm: Blank) -> str:
    """Tell the socket of the VM's backup job; empty when none runs."""
    said = vm.host.virsh("backup-dumpxml", vm.name, check=False)
    found = re.search(r"socket='([^']+)'", said.stdout)
    return found[1] if found else ""


def sent(vm: Blank) -> int:
    """Tell the bytes that the cycle under way has put on the wire."""
    return int((shown(vm)["progress"] or {}).get("wire_bytes", 0))


def speed(vm: Blank, seconds: float) -> float:
    """Measure the bytes per second that go out."""
    before, began = sent(vm), time.monotonic()
    time.sleep(seconds)
    return (sent(vm) - before) / (time.monotonic() - began)


def require_equal(lab: Lab, vm: Blank) -> None:
    newest = points(vm.host, vm.name)[-1]["point"]
    for image, source in zip(images(lab.host("b"), vm.uuid, newest), vm.images.values(), strict=True):
        assert same_content(image, source)


def wire_bytes(vm: Blank) -> int:
    """Add up what all cycles of a VM put on the wire."""
    found = json.loads(api(vm).get(vm_path(vm.name, "history"), limit="1000"))["cycles"]
    return sum(int(cycle["wire_bytes"]) for cycle in found)


@pytest.fixture
def small_spool(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Let the agent of host a keep so little in its spool that reading has to wait for the line; and other limits."""
    a = lab.host("a")
    usual = a.layout.agent_config.read_text()
    more = getattr(request, "param", "")
    a.layout.agent_config.write_text(f"{usual}\n[limits]\nspool_cap = {12 * MiB}\nscratch_cap = {64 * MiB}\n{more}\n")
    a.stop_agent()
    a.start_agent()
    yield lab
    a.layout.agent_config.write_text(usual)
    a.stop_agent()
    lab.restore()


def test_a_rate_is_kept_changed_while_it_runs_and_taken_away(lab: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(lab.host("a"))
    fill(vm, 48 * MiB)
    begin(vm, "2M")
    assert until(lambda: sent(vm) > MiB, 60)
    assert speed(vm, 4) == pytest.approx(2 * MiB, rel=0.2)
    now = shown(vm)
    assert (now["rate"], now["limit"]["rate"]) == (2 * MiB, 2 * MiB)
    told = now["progress"]
    assert told["wire_rate"] == pytest.approx(2 * MiB, rel=0.3)
    assert told["seconds_left"] == pytest.approx((48 * MiB - told["wire_bytes"]) / (2 * MiB), rel=0.4)

    assert vm.host.ask("limit", vm.name, "512K", "00:00-24:00 4M")["rate"] == 4 * MiB, "the window that fits counts"
    time.sleep(1)
    assert speed(vm, 2) == pytest.approx(4 * MiB, rel=0.2)
    limit(vm, "none")
    wait_published(vm, 1, limit=30)
    require_equal(lab, vm)
    limit(vm, "3M")
    enable(vm.host, vm.name, every="12h")
    assert shown(vm)["rate"] == 3 * MiB, "who says nothing about it keeps it"


def test_a_pause_is_prompt_and_nothing_is_sent_again_after_it(small_spool: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(small_spool.host("a"))
    fill(vm, 56 * MiB)
    small_spool.slow("a", "b", mbit=16)
    begin(vm, "none")
    assert until(lambda: sent(vm) > 18 * MiB, 60)
    began = time.monotonic()
    ask(vm, "pause")
    assert time.monotonic() - began < 3, "a slow line is not waited for"
    before = job(vm)
    assert before, "the frozen view is kept"
    vm.write("vda", "0", "64k", 5)
    vm.host.stop_agent()
    vm.host.start_agent()
    small_spool.heal("a", "b")
    assert until(lambda: shown(vm)["state"] == "paused", 30)
    assert job(vm) == before, "also over a restart of the agent"
    ask(vm, "resume")
    (first,) = wait_published(vm, 1)
    assert (first["kind"], first["reason"]) == ("initial", "continued")
    assert 56 * MiB <= wire_bytes(vm) <= 57 * MiB + 2 * OPEN_SEGMENT
    ask(vm, "sync")
    assert wait_published(vm, 2)[1]["guest_bytes"] == 64 * KiB, "written while it rested"
    require_equal(small_spool, vm)


def test_a_stopped_agent_goes_on_where_it_was(small_spool: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(small_spool.host("a"))
    fill(vm, 56 * MiB)
    begin(vm, "6M")
    assert until(lambda: sent(vm) > 18 * MiB, 60)
    vm.host.stop_agent()
    vm.host.start_agent()
    limit(vm, "none")
    (first,) = wait_published(vm, 1)
    assert (first["kind"], first["reason"]) == ("initial", "continued")
    assert 56 * MiB <= wire_bytes(vm) <= 57 * MiB + OPEN_SEGMENT
    require_equal(small_spool, vm)


@pytest.mark.slow
@pytest.mark.parametrize("small_spool", ["pause_hold = 3"], indirect=True)
def test_a_kept_job_is_given_up_after_its_time_and_the_copy_begins_anew(small_spool: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(small_spool.host("a"))
    fill(vm, 56 * MiB)
    begin(vm, "6M")
    assert until(lambda: sent(vm) > 12 * MiB, 60)
    ask(vm, "pause")
    assert job(vm)
    assert until(lambda: not job(vm), 20)
    assert vm.host.virsh("checkpoint-list", vm.name, "--name").stdout.split() == []
    limit(vm, "none")
    ask(vm, "resume")
    assert wait_published(vm, 1)[0]["reason"] == "no point yet"
    require_equal(small_spool, vm)


@pytest.mark.slow
def test_nothing_is_left_of_a_vm_that_is_given_up_while_its_job_is_kept(small_spool: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(small_spool.host("a"))
    fill(vm, 56 * MiB)
    begin(vm, "6M")
    assert until(lambda: sent(vm) > 12 * MiB, 60)
    ask(vm, "pause")
    assert job(vm)
    vm.host.ask("disable", vm.name, "--delete-copy", "--yes")
    assert not job(vm)
    assert vm.host.virsh("checkpoint-list", vm.name, "--name").stdout.split() == []
    left = [path for path in vm.host.layout.runtime_dir.rglob(f"*{vm.uuid}*/*") if not path.is_dir()]
    assert left == []
    assert not (vm.host.layout.state_dir / "spool" / vm.uuid).exists()


def test_of_two_first_copies_one_waits_for_its_turn_and_deltas_go_on(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    quick, one, other = new_blank(a), new_blank(a), new_blank(a)
    begin(quick, every=5)
    wait_published(quick, 1)
    for vm in (one, other):
        fill(vm, 16 * MiB)
        begin(vm, "256K")
    assert until(lambda: {shown(one)["waits"], shown(other)["waits"]} == {None, "resync-queued"}, 30)
    queued, busy = (one, other) if shown(one)["waits"] else (other, one)
    assert "waiting for its turn to resynchronize" in a.vmreplica("status", queued.name).stdout
    wait_published(quick, len(published(quick)) + 2)
    assert not published(busy), "the long one was still under way"
    assert shown(queued)["waits"] == "resync-queued"
    task = json.loads(api(queued).send("POST", vm_path(queued.name, "sync")))["id"]
    for vm in (one, other):
        limit(vm, "none")
    wait_published(queued, 1)
    # Who waits for a cycle of the one that waits for its turn is answered by that cycle.
    answered = json.loads(api(queued).get(f"/v1/tasks/{task}"))
    assert answered["result"]["kind"] == "initial", answered
    assert published(busy)[0]["started"] < published(queued)[0]["started"]
    require_equal(lab, queued)


def test_initial_replication_begins_when_it_was_told_to_or_by_sync(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm, soon = new_blank(a), new_blank(a)
    told = a.vmreplica("enable", vm.name, "--to", "b", "--every", "24h", "--at", "tomorrow 02:30").stdout
    assert "02:30" in told
    begins = dt.datetime.fromisoformat(shown(vm)["begins_at"])
    assert begins.astimezone().strftime("%H:%M") == "02:30"
    assert abs(dt.datetime.fromisoformat(shown(vm)["next_due"]) - begins) < dt.timedelta(seconds=2)
    a.stop_agent()
    a.start_agent()
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5)
    begin(soon, at=moment)
    (first,) = wait_published(soon, 1)
    late = dt.datetime.fromisoformat(first["started"]) - moment
    assert dt.timedelta(seconds=-1) <= late < dt.timedelta(seconds=10)
    assert dt.datetime.fromisoformat(shown(vm)["begins_at"]) == begins, "set for as long as it takes"
    assert not published(vm)
    ask(vm, "sync")
    wait_published(vm, 1)
    assert shown(vm)["begins_at"] is None
    assert refusal(a, "enable", vm.name, "--to", "b", "--at", "22:00")[1]["code"] == "already-begun"
