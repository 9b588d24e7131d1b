"""Rotten bits on a replica: found and named by scrub, refused by what uses a point, brought again by the primary."""

import json
import os

import pytest
from job_kit import Blank, NewBlank, enable, images, inside, points, reasons, refusal, relation, same_content

from vmreplica.lab import Lab
from vmreplica.lab.waiting import until
from vmreplica.model.units import CLUSTER, KiB, MiB

pytestmark = pytest.mark.points

PATCH = MiB + 8 * KiB


def _write(vm: Blank, offset: int, data: bytes) -> None:
    """Let the guest's device write bytes that do not compress."""
    source = vm.host.layout.images / f"{vm.name}.bytes"
    source.write_bytes(data)
    for act in (f"write -s {source} {offset} {len(data)}", "flush"):
        device = "/machine/peripheral/virtio-disk0/virtio-backend"
        said = vm.host.virsh("qemu-monitor-command", vm.name, "--hmp", f'qemu-io -d {device} "{act}"').stdout
        assert "rror" not in said, said


def test_rot_in_the_newest_point_is_found_refused_and_brought_again(lab: Lab, new_blank: NewBlank) -> None:
    replica, vm, patch = lab.host("b"), new_blank(lab.host("a")), os.urandom(4 * KiB)
    _write(vm, 0, os.urandom(2 * MiB))
    enable(vm.host, vm.name, every="24h")
    _write(vm, PATCH, patch)
    vm.host.ask("sync", vm.name, timeout=300)
    good, bad = (point["point"] for point in points(replica, vm.name))
    assert replica.ask("scrub", vm.name, timeout=300)["scrubbed"]["damaged"] == 0
    assert relation(replica, vm.name)["scrub"]["damaged"] == []

    (image,) = images(replica, vm.uuid, bad)
    raw = image.read_bytes()
    with image.open("r+b") as fh:
        fh.seek(raw.index(patch) + 100)
        fh.write(bytes([patch[100] ^ 0x10]))
    assert not same_content(image, vm.images["vda"]), "QEMU serves it as it is"
    found = replica.vmreplica("scrub", vm.name, "--json", check=False, timeout=300)
    assert found.returncode == 11, found.stdout + found.stderr
    (damage,) = json.loads(found.stdout)["scrubbed"]["damages"]
    assert (damage["point"], damage["disk"], damage["what"]) == (bad, "vda", "patch")
    assert (damage["guest_offset"], damage["length"]) == (PATCH, 4 * KiB)
    assert points(replica, vm.name)[-1]["damaged"]
    assert reasons(replica, vm.name)["scrub-damage"]["level"] == "critical"

    for words in (("failover", vm.name, "--test"), ("failover", vm.name, "--test", "--dry-run")):
        code, error = refusal(replica, *words)
        assert (code, error["code"]) == (6, "point-damaged")
        assert str(PATCH) in error["message"]
        assert good in error["hint"]
    _code, error = refusal(vm.host, "failover", vm.name, "--planned", "--force", "--dry-run")
    assert error["code"] == "planned-not-ready"
    warned = replica.ask("failover", vm.name, "--test", "--dry-run", "--even-damaged")
    assert any("damaged" in warning for warning in warned["warnings"])
    assert replica.ask("failover", vm.name, "--test", "--dry-run", "--point", good)["point"] == good

    vm.host.ask("sync", vm.name, timeout=300)
    assert until(lambda: not points(replica, vm.name)[-1]["damaged"], 60)
    newest = points(replica, vm.name)[-1]["point"]
    assert newest > bad
    assert same_content(images(replica, vm.uuid, newest)[0], vm.images["vda"])
    assert reasons(replica, vm.name)["scrub-damage"]["level"] == "warning", "older points are still damaged"
    assert replica.ask("failover", vm.name, "--test", "--dry-run")["point"] == newest
    record = inside(replica, replica.layout.store) / vm.uuid / "points" / bad / "damage.json"
    assert json.loads(record.read_text())["damages"][0]["guest_offset"] // CLUSTER == PATCH // CLUSTER
