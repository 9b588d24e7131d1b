"""A relationship's policy through the command line: pause, disks left out, points kept, changes, and its end."""

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from job_kit import (
    Blank,
    NewBlank,
    cycles,
    enable,
    images,
    inside,
    points,
    qemu_img,
    refusal,
    relation,
    same_content,
    wait_cycles,
    wait_reason,
)

from vmreplica.api.requests import LimitRequest
from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.rates import parse_limit
from vmreplica.model.units import MiB

pytestmark = pytest.mark.main_job


def test_no_cycle_runs_while_paused_and_a_delta_follows_the_resume(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    enable(a, vm.name)
    wait_cycles(a, vm.name, 2)
    a.ask("pause", vm.name)
    count = len(cycles(a, vm.name))
    vm.write("vda", "1M", "64k", 7)
    code, error = refusal(a, "sync", vm.name)
    assert (code, error["code"]) == (5, "paused")
    assert f"vmreplica resume {vm.name}" in error["hint"]
    for verb in ("sync", "pause", "resume"):
        code, error = refusal(lab.host("b"), verb, vm.name)
        assert (code, error["code"], error["hint"]) == (3, "not-protected", "run the same command on a"), verb
    time.sleep(11)
    assert len(cycles(a, vm.name)) == count, "two intervals went by"
    assert relation(a, vm.name)["state"] == "paused"
    assert relation(a, vm.name)["next_due"] is None
    assert wait_reason(a, vm.name, "paused")["level"] == "warning"

    a.ask("resume", vm.name)
    resumed = wait_cycles(a, vm.name, count + 1)[count]
    assert (resumed["kind"], resumed["guest_bytes"]) == ("delta", 64 * 1024)


def test_of_two_changes_at_the_same_moment_neither_takes_the_other_back(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    enable(a, vm.name, every="24h")
    api, path = AgentClient(a.layout.agent_socket), partial(vm_path, vm.name)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for round_ in range(1, 11):
            limit = LimitRequest(limit=parse_limit([f"{round_}M"]))
            verb = "pause" if round_ % 2 else "resume"
            done = pool.submit(api.send, "PUT", path("limit"), limit), pool.submit(api.send, "POST", path(verb))
            for future in done:
                future.result()
            written = a.virsh("dumpxml", vm.name, "--inactive").stdout.replace("&quot;", '"')
            assert f'"paused":{"true" if round_ % 2 else "false"}' in written
            assert f'"limit":{limit.limit.model_dump_json()}' in written


def test_a_pause_outlives_the_agent(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    enable(a, vm.name)
    a.ask("pause", vm.name)
    a.stop_agent()
    a.start_agent()
    assert until(lambda: vm.name in a.vmreplica("status").stdout, 30)
    assert relation(a, vm.name)["state"] == "paused"
    assert refusal(a, "sync", vm.name)[1]["code"] == "paused"


def test_an_agent_that_has_just_started_looks_before_it_says_what_is_protected(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    enable(a, vm.name, every="12h")
    a.stop_agent()
    (libvirtd,) = (pid for pid in a.namespace.processes() if Path(f"/proc/{pid}/comm").read_text() == "libvirtd\n")
    os.kill(libvirtd, signal.SIGSTOP)
    try:
        a.start_agent()
        with ThreadPoolExecutor(1) as asking:
            answer = asking.submit(AgentClient(a.layout.agent_socket).get, "/v1/status")
            time.sleep(1)
            os.kill(libvirtd, signal.SIGCONT)
            known = json.loads(answer.result())["relationships"]
    finally:
        os.kill(libvirtd, signal.SIGCONT)
    assert [rel["name"] for rel in known if rel["vm"] == vm.uuid] == [vm.name]


def test_a_disk_left_out_is_nowhere_on_the_replica_until_the_policy_changes(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, disks=("vda", "vdb"))
    vm.write("vdb", "0", "2M", 9)
    enable(a, vm.name, "--exclude-disk", "vdb", every="24h")
    assert relation(a, vm.name)["excluded"] == ["vdb"]
    assert [image.name for image in images(b, vm.uuid, points(b, vm.name)[0]["point"])] == ["vda.qcow2"]

    vm.write("vda", "0", "64k", 8)
    task = enable(a, vm.name, "--keep", "5", every="12h")
    assert task["result"]["kind"] == "delta", "the disk that was known is not copied whole again"
    here = relation(a, vm.name)
    assert (here["excluded"], here["interval"], here["keep"]["last"]) == ([], 12 * 3600, 5)
    assert (relation(b, vm.name)["interval"], relation(b, vm.name)["keep"]["last"]) == (12 * 3600, 5)
    for target, copy in zip(("vda", "vdb"), images(b, vm.uuid, points(b, vm.name)[-1]["point"]), strict=True):
        assert same_content(vm.images[target], copy)


def test_a_failed_over_vm_lacks_the_disk_that_was_left_out(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, disks=("vda", "vdb"))
    enable(a, vm.name, "--exclude-disk", "vdb", every="24h")
    vm.stop()
    report = b.ask("failover", vm.name, "--yes")
    assert any("vdb" in note for note in report["plan"]["notes"]), "what is missing is told"
    assert [path.name for path in b.disk_paths(vm.name)] == ["vda.qcow2"]


def test_no_more_points_are_kept_than_asked_for_and_each_holds_its_moment(
    lab: Lab, new_blank: NewBlank, tmp_path: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    vm.write("vda", "8M", "1M", 1)
    moments = {enable(a, vm.name, "--keep", "3", every="24h")["result"]["point"]: _moment(vm, tmp_path / "1")}
    for number in range(2, 7):
        vm.write("vda", f"{number}M", "64k", number)
        vm.write("vda", "0", "64k", number)
        moments[a.ask("sync", vm.name)["result"]["point"]] = _moment(vm, tmp_path / str(number))

    assert until(lambda: len(points(b, vm.name)) == 3, 60), points(b, vm.name)
    found = points(b, vm.name)
    assert [point["point"] for point in found] == list(moments)[-3:], "the newest stay"
    assert found[0]["parent"] is None, "the oldest has become the base"
    for point in found:
        (copy,) = images(b, vm.uuid, point["point"])
        qemu_img("check", "-q", str(copy))
        assert same_content(moments[point["point"]], copy)
    assert relation(a, vm.name)["points"] == 3
    directory = inside(b, b.layout.store / vm.uuid)
    assert len(list((directory / "points").iterdir())) == 3, "nothing of the folded points is left"
    assert not (directory / "fold.json").exists()


def _moment(vm: Blank, kept: Path) -> Path:
    """Keep what the VM's disk holds now."""
    qemu_img("convert", "-U", "-O", "qcow2", str(vm.images["vda"]), str(kept))
    return kept


def test_disable_leaves_nothing_on_the_primary_and_the_copy_on_the_replica(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, "--keep", "last=7,within=1h")
    wait_cycles(a, vm.name, 2)
    assert _traces(a, vm), "the search finds what is there"
    code, error = refusal(a, "disable", vm.name)
    assert (code, error["code"]) == (2, "confirmation-needed")

    a.ask("disable", vm.name, "--yes")
    assert _traces(a, vm) == []
    assert refusal(a, "status", vm.name)[1]["code"] == "not-protected"
    assert refusal(a, "disable", vm.name, "--yes")[1]["code"] == "not-protected"
    assert len(points(b, vm.name)) >= 2, "the copy stays"

    code, error = refusal(a, "enable", vm.name, "--to", "b", "--every", "24h", "--keep", "1")
    assert (code, error["code"]) == (2, "confirmation-needed")
    assert "recovery points" in error["message"] + error["hint"]
    held = len(points(b, vm.name))
    again = enable(a, vm.name, every="24h")
    assert again["result"]["outcome"] == "published"
    assert relation(a, vm.name)["keep"]["last"] == 7, "the rules of the copy that was kept are those of before"
    assert len(points(b, vm.name)) == held + 1
    a.ask("disable", vm.name, "--delete-copy", "--yes")
    assert _traces(a, vm) == []
    assert refusal(b, "points", vm.name)[0] == 3
    assert not inside(b, b.layout.store / vm.uuid).exists()


def _traces(host: Host, vm: Blank) -> list[str]:
    """Find what of ours is on a domain, its image and the host's file systems."""
    layout = host.layout
    found = host.virsh("checkpoint-list", vm.name, "--name").stdout.split()
    found += ["metadata"] * ("vmreplica" in host.virsh("dumpxml", vm.name).stdout)
    found += ["metadata"] * ("vmreplica" in host.virsh("dumpxml", "--inactive", vm.name).stdout)
    shown = json.loads(qemu_img("info", "-U", "--output=json", str(vm.images["vda"])))
    found += [bitmap["name"] for bitmap in shown["format-specific"]["data"].get("bitmaps", ())]
    block = host.virsh("qemu-monitor-command", vm.name, '{"execute": "query-block"}').stdout
    found += ["bitmap in QEMU"] * ("vmreplica" in block)
    for root in (layout.state_dir / "spool", layout.state_dir / "checkpoints", layout.runtime_dir):
        short = vm.uuid.replace("-", "")[:12]
        found += [str(path) for path in root.rglob("*") if {vm.uuid, short} & set(path.parts)]
    return found


def test_a_disk_plugged_in_is_copied_whole_while_the_others_go_on_by_deltas(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    vm.write("vda", "0", "8M", 1)
    enable(a, vm.name, every="24h")
    vm.attach("vdb")
    vm.write("vdb", "3M", "1M", 2)
    vm.write("vda", "1M", "64k", 3)
    cycle = a.ask("sync", vm.name)["result"]
    assert cycle["kind"] == "delta"
    assert cycle["guest_bytes"] < 8 * MiB, "vda is not sent whole again"
    copies = images(b, vm.uuid, cycle["point"])
    assert [copy.name for copy in copies] == ["vda.qcow2", "vdb.qcow2"]
    assert all(same_content(vm.images[copy.stem], copy) for copy in copies)

    vm.write("vdb", "4M", "64k", 4)
    cycle = a.ask("sync", vm.name)["result"]
    assert (cycle["kind"], cycle["guest_bytes"]) == ("delta", 64 * 1024), "from now on vdb goes by deltas, too"
    copies = images(b, vm.uuid, cycle["point"])
    assert all(same_content(vm.images[copy.stem], copy) for copy in copies)

    vm.stop()
    b.ask("failover", vm.name, "--yes")
    assert [path.name for path in b.disk_paths(vm.name)] == ["vda.qcow2", "vdb.qcow2"], "the guest may need it"


def test_a_vm_renamed_while_off_is_followed_under_its_new_name_by_deltas(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    vm.write("vda", "0", "1M", 1)
    enable(a, vm.name)
    vm.stop()
    old, vm.name = vm.name, f"{vm.name}-renamed"
    a.virsh("domrename", old, vm.name)
    count = len(cycles(a, vm.name))
    vm.start()
    vm.write("vda", "2M", "64k", 2)
    later = wait_cycles(a, vm.name, count + 2)[count:]
    assert {cycle["kind"] for cycle in later} == {"delta"}, later
    assert until(lambda: refusal(a, "status", old)[1]["code"] == "vm-unknown", 60)
    assert relation(b, vm.name)["vm"] == vm.uuid, "the replica has taken note of the new name"
    (copy,) = images(b, vm.uuid, points(b, vm.name)[-1]["point"])
    assert same_content(vm.images["vda"], copy)


def test_an_interval_that_cannot_be_kept_is_said_and_nothing_piles_up(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    vm.write("vda", "0", "1M", 1)
    # A round trip of three seconds: the handful that a cycle needs takes longer than its interval.
    lab.slow("a", "b", ms=1500)
    said = a.vmreplica("enable", vm.name, "--to", "b", "--every", "5s")
    assert re.search(rf"^{vm.name}: initial replication 1\.0 MiB of 1\.0 MiB, .* sent", said.stderr, re.MULTILINE), (
        said.stderr
    )
    assert re.match(rf"{vm.name}: point \S+ published \(initial\): ", said.stdout)
    reason = wait_reason(a, vm.name, "interval-not-kept")
    assert "--every" in reason["hint"]
    count, begun = len(cycles(a, vm.name)), time.monotonic()
    wait_cycles(a, vm.name, count + 2)
    late = cycles(a, vm.name)[count:]
    assert len(late) <= (time.monotonic() - begun) / 5, "cycles do not overtake each other"
    lab.heal("a", "b")
    assert until(lambda: "interval-not-kept" not in a.vmreplica("status", vm.name).stdout, 60)
    count, begun = len(cycles(a, vm.name)), time.monotonic()
    wait_cycles(a, vm.name, count + 3)
    assert time.monotonic() - begun > 9, "turns that were missed are not made up for"
