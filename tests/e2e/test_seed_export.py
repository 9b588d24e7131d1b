"""A first copy that travels in a directory, through the command line: deltas flow meanwhile, import, failover."""

import json
import shutil
from pathlib import Path

import pytest
from job_kit import (
    Document,
    NewBlank,
    NewGuest,
    check_point,
    enable,
    images,
    inside,
    points,
    reasons,
    refusal,
    relation,
    same_content,
    wait_cycles,
    wait_healthy,
)

from vmreplica.lab import Host, Lab
from vmreplica.lab.host import VMREPLICA
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.seeding


def _carry(source: Host, directory: Path, to: Host) -> Path:
    """Bring a directory from one host to another, as a person would; gives where it is there."""
    there = to.layout.images / directory.name
    shutil.copytree(inside(source, directory), inside(to, there))
    return there


def _usb(host: Host, name: str) -> Path:
    """Choose a directory of a host that does not exist yet."""
    path = host.layout.images / name
    shutil.rmtree(inside(host, path), ignore_errors=True)
    return path


def test_a_guest_writes_on_while_its_disk_travels_and_is_whole_after_the_failover(
    lab: Lab, new_guest: NewGuest
) -> None:
    a, b = lab.hosts
    guest = new_guest(a, disks=2)
    guest.wait_for("boot complete")
    vm = guest.uuid
    usb = _usb(a, "usb-guest")
    task = enable(a, guest.name, "--seed", f"export:{usb}")
    base = task["result"]["point"]
    assert relation(a, guest.name)["state"] == "waiting-for-initial"
    assert "vmreplica import" in reasons(a, guest.name)["base-awaited"]["hint"]
    wait_cycles(a, guest.name, 3)
    known = points(b, guest.name)
    assert {point["waits_for"] for point in known} == {base}, "deltas are here, and wait"
    code, error = refusal(b, "failover", guest.name, "--yes")
    assert (code, error["code"]) == (5, "base-awaited")
    assert "vmreplica import" in error["hint"]

    arrived = _carry(a, usb, b)
    report = b.ask("import", str(arrived))["imported"]
    assert (report["point"], report["was_here"]) == (base, False)
    assert b.ask("import", str(arrived))["imported"]["was_here"]
    count = len(wait_cycles(a, guest.name, 4))
    wait_cycles(a, guest.name, count + 1)
    wait_healthy(a, guest.name)
    newest = points(b, guest.name)[-1]
    assert newest["waits_for"] is None
    check_point(b, vm, newest["point"])
    assert json.loads(_policy(a, guest.name))["seed"] is None, "another first copy would not go to the directory"

    lab.crash("a")
    report = b.ask("failover", guest.name, "--yes")
    assert report["started"]
    b.wait_domain_alive(guest.name)
    check_point(b, vm, report["plan"]["point"])


def _policy(host: Host, name: str) -> str:
    text: str = host.virsh("metadata", name, "--uri", "urn:vmreplica:policy:1").stdout
    return text[text.index("{") : text.rindex("}") + 1]


def test_a_passphrase_a_relative_directory_and_the_words_for_people(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.hosts
    vm = new_blank(a, disks=("vda", "vdb"))
    vm.write("vda", "0", "3M", 1)
    vm.write("vdb", "5M", "1M", 2)
    secret = a.layout.images / "secret.txt"
    secret.write_text("correct horse\n")
    usb = _usb(a, "usb-words")
    words = ["enable", vm.name, "--to", "b", "--every", "24h", "--seed", f"export:{usb.name}"]
    there = ["sh", "-c", f'cd {usb.parent} && exec "$@"', "sh", *VMREPLICA]
    said = a.exec([*there, *words, "--passphrase-file", str(secret)], timeout=300)
    assert f"vmreplica import {usb}" in said.stdout
    header = json.loads((usb / "vmreplica-export.json").read_text())
    assert (header["name"], header["protection"]) == (vm.name, "passphrase")
    vm.write("vda", "1M", "64k", 3)
    assert a.ask("sync", vm.name)["result"]["kind"] == "delta"

    arrived = _carry(a, usb, b)
    assert refusal(b, "import", str(arrived))[1]["code"] == "passphrase-needed"
    kept = b.layout.images / "secret.txt"
    kept.write_text("correct horse\n")
    said = b.vmreplica("import", str(arrived), "--passphrase-file", str(kept), timeout=300)
    assert "failover is possible" in said.stdout
    for target, copy in zip(("vda", "vdb"), images(b, vm.uuid, points(b, vm.name)[-1]["point"]), strict=True):
        assert same_content(vm.images[target], copy)
    assert refusal(a, "import", str(usb))[1]["code"] == "export-for-another-host"


def test_a_lost_export_is_given_up_when_it_is_said_twice(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.hosts
    vm = new_blank(a)
    vm.write("vda", "0", "2M", 1)
    usb = _usb(a, "usb-lost")
    enable(a, vm.name, "--seed", f"export:{usb}", every="24h")
    vm.write("vda", "1M", "64k", 2)
    a.ask("sync", vm.name)
    for other in (f"export:{usb}-2", "network"):
        code, error = refusal(a, "enable", vm.name, "--to", "b", "--seed", other)
        assert (code, error["code"]) == (2, "confirmation-needed")
        assert "gives that export up" in error["message"]
        assert "--yes" in error["hint"]
    assert relation(a, vm.name)["state"] == "waiting-for-initial"

    enable(a, vm.name, every="12h")
    assert relation(a, vm.name)["state"] == "waiting-for-initial", "a change of the policy alone gives nothing up"
    task = enable(a, vm.name, "--seed", "network", "--yes", every="24h")
    assert task["result"]["kind"] == "initial"
    assert [point["waits_for"] for point in points(b, vm.name)] == [None]
    (copy,) = images(b, vm.uuid, points(b, vm.name)[-1]["point"])
    assert same_content(vm.images["vda"], copy)
    assert refusal(b, "import", str(_carry(a, usb, b)))[1]["code"] == "export-not-awaited"


REFUSED = {
    ("--seed", "export:/proc/nowhere/x"): "export-gone",
    ("--seed", "export:/sys/x"): "export-forbidden",
    ("--seed", "export:/etc"): "export-directory-not-empty",
    ("--seed", "export:"): "seed-invalid",
    ("--seed", "pigeon"): "seed-invalid",
    ("--recipient", "age1x"): "key-without-export",
    ("--seed", "export:/tmp/x", "--recipient", "ssh-rsa"): "request-invalid",
}


def test_a_directory_that_cannot_be_written_is_refused_at_once(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    for words, code in REFUSED.items():
        assert refusal(a, "enable", vm.name, "--to", "b", *words)[1]["code"] == code
    assert refusal(a, "status", vm.name)[1]["code"] == "not-protected"


def test_a_full_medium_and_one_that_is_pulled_out_are_waited_for(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.hosts
    vm = new_blank(a)
    vm.write("vda", "0", "1M", 1)
    medium, usb = (a.layout.images / name for name in ("medium", "usb-full"))
    for path in (medium, usb):
        path.mkdir()
    a.exec(["mount", "-t", "tmpfs", "-o", "size=256k", "medium", str(medium)])
    plug, pull = ["mount", "--bind", str(medium), str(usb)], ["umount", "--lazy", str(usb)]
    a.exec(plug)
    try:
        _fill(a, medium)
        a.vmreplica("enable", vm.name, "--to", "b", "--every", "5s", "--seed", f"export:{usb}/x", "--no-wait")
        assert until(lambda: "are free" in _trouble(a, vm.name), 60), _trouble(a, vm.name)
        a.exec(pull)
        assert until(lambda: "cannot be used: No such file" in _trouble(a, vm.name), 60), _trouble(a, vm.name)
        assert list(inside(a, usb).iterdir()) == [], "nothing is written where the medium was"
        a.exec(plug)
        (inside(a, medium) / "filler").unlink()
        assert until(lambda: bool(points(b, vm.name)), 90), _trouble(a, vm.name)
        b.ask("import", str(_carry(a, usb / "x", b)))
    finally:
        a.ask("disable", vm.name, "--delete-copy", "--yes")
        a.exec(pull, check=False)
        a.exec(["umount", "--lazy", str(medium)])
        for path in (medium, usb):
            path.rmdir()


def _trouble(host: Host, vm: str) -> str:
    """Tell what status says that goes wrong now."""
    report: Document = relation(host, vm)
    return f"{report['progress'] and report['progress']['phase']} {report['health']['reasons']}"


def _fill(host: Host, place: Path) -> None:
    """Leave less room than any segment takes."""
    inside(host, place / "x").mkdir()
    script = f"head -c 1M /dev/urandom > '{place}/filler'; truncate -s -12K '{place}/filler'"
    host.exec(["sh", "-c", script], check=False)
