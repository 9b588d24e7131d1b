"""Points compared with their primary through the command line: wrong bytes that QEMU cannot see, found and repaired."""

import os

import pytest
from job_kit import (
    NewBlank,
    cycles,
    inside,
    points,
    qemu_img,
    reasons,
    refusal,
    relation,
    same_content,
    switch_off,
)
from proof_kit import FIRST, FRAME, OVERHEAD, PATCH, image_of, protected, rot, rot_frame, verify

from vmreplica.lab import Lab
from vmreplica.lab.waiting import until
from vmreplica.model.units import CLUSTER, KiB

pytestmark = pytest.mark.points


def test_wrong_blocks_that_qemu_cannot_see_are_found_quarantined_and_brought_again(
    lab: Lab, new_blank: NewBlank
) -> None:
    replica = lab.host("b")
    vm, data, patch = protected(lab, new_blank)
    (disk,) = verify(vm.host, vm.name)["verified"]["disks"]
    assert (disk["verdict"], disk["how"], disk["read_bytes"]) == ("equal", "blocks", FIRST)
    assert points(vm.host, vm.name)[-1]["verified"]["verdict"] == "equal"

    rot_frame(image_of(lab, vm, 0), data[FRAME * CLUSTER : (FRAME + 1) * CLUSTER])
    rot(image_of(lab, vm, -1), patch, os.urandom(4 * KiB))
    qemu_img("check", "-q", str(image_of(lab, vm, -1)))
    wrong = verify(vm.host, vm.name, right=False)["verified"]
    (disk,) = wrong["disks"]
    places = [(place["offset"], place["length"]) for place in disk["wrong"]]
    assert places == [(FRAME * CLUSTER, CLUSTER), (PATCH, 4 * KiB)]
    assert reasons(vm.host, vm.name)["verify-differs"]["level"] == "critical"
    newest = points(vm.host, vm.name)[-1]
    assert newest["point"] == wrong["point"]
    assert newest["damaged"]
    assert points(replica, vm.name)[-1]["verified"]["verdict"] == "wrong"
    assert refusal(replica, "failover", vm.name, "--yes")[1]["code"] == "point-damaged"

    report = verify(vm.host, vm.name, "--repair")
    assert report["repaired"]["verdict"] == "repaired"
    assert report["repair_wire_bytes"] <= 2 * CLUSTER + OVERHEAD
    assert same_content(image_of(lab, vm, -1), vm.images["vda"])
    assert cycles(vm.host, vm.name)[-1]["reason"] == "vda: 2 damaged clusters brought again"
    (disk,) = verify(vm.host, vm.name)["verified"]["disks"]
    assert (disk["verdict"], disk["how"]) == ("equal", "blocks")
    assert "verify-differs" not in reasons(vm.host, vm.name)
    listed = points(vm.host, vm.name)
    assert [bool(point["damaged"]) for point in listed] == [False, True, False]

    # The oldest one is known by its sum only, and there is nothing to bring again for it.
    oldest = verify(vm.host, vm.name, "--point", listed[0]["point"], right=False)["verified"]
    assert [(d["verdict"], d["how"]) for d in oldest["disks"]] == [("wrong", "sum")]
    assert points(vm.host, vm.name)[0]["damaged"]
    refused = refusal(vm.host, "verify", vm.name, "--point", listed[0]["point"], "--repair")[1]
    assert refused["code"] == "repair-not-possible"

    source = vm.images["vda"]
    vm.stop()
    replica.vmreplica("failover", vm.name, "--yes", timeout=300)
    (layer,) = inside(replica, replica.layout.store / vm.uuid / "run").glob("*.qcow2")
    assert same_content(layer, source), "the VM lives on what it had"
    replica.vmreplica("failover", vm.name, "--cancel", "--yes", timeout=300)


@pytest.mark.slow
def test_an_older_point_is_proven_by_its_sum_also_after_newer_ones_came(lab: Lab, new_blank: NewBlank) -> None:
    vm, _data, _patch = protected(lab, new_blank)
    for point in points(vm.host, vm.name)[:-1]:
        (disk,) = verify(vm.host, vm.name, "--point", point["point"])["verified"]["disks"]
        assert (disk["verdict"], disk["how"], disk["read_bytes"]) == ("equal", "sum", FIRST)


@pytest.mark.slow
def test_a_vm_that_is_off_is_verified_and_repaired_from_its_images(lab: Lab, new_blank: NewBlank) -> None:
    vm, _data, patch = protected(lab, new_blank)
    switch_off(vm)
    place = next(number for number in (-1, -2, -3) if patch in image_of(lab, vm, number).read_bytes())
    rot(image_of(lab, vm, place), patch, os.urandom(4 * KiB))
    report = verify(vm.host, vm.name, "--repair")
    assert (report["verified"]["verdict"], report["repaired"]["verdict"]) == ("wrong", "repaired")
    assert same_content(image_of(lab, vm, -1), vm.images["vda"])
    assert until(lambda: relation(vm.host, vm.name)["waits"] == "vm-off", 60)
    count = len(points(vm.host, vm.name))
    assert refusal(vm.host, "sync", vm.name)[1]["code"] == "vm-not-running", "nothing is asked for any more"
    assert len(points(vm.host, vm.name)) == count


@pytest.mark.slow
def test_what_the_replica_told_itself_proves_nothing_until_the_disks_are_compared(
    lab: Lab, new_blank: NewBlank
) -> None:
    vm, data, _patch = protected(lab, new_blank)
    # Wrong already when the fingerprint is lost: the replica is asked, and tells what it holds.
    rot_frame(image_of(lab, vm, 0), data[FRAME * CLUSTER : (FRAME + 1) * CLUSTER])
    (vm.host.layout.state_dir / "fingerprints" / vm.uuid / "vda.fp").unlink()
    vm.host.ask("sync", vm.name, timeout=300)
    (disk,) = verify(vm.host, vm.name, right=False)["verified"]["disks"]
    assert disk["verdict"] == "unproven"
    assert "--repair" in disk["why"]
    report = verify(vm.host, vm.name, "--repair")
    assert report["repaired"]["verdict"] == "equal"
    assert report["repair_wire_bytes"] <= CLUSTER + OVERHEAD
    assert same_content(image_of(lab, vm, -1), vm.images["vda"])


def test_what_cannot_be_verified_is_refused_with_a_remedy(lab: Lab, new_blank: NewBlank) -> None:
    vm, _data, _patch = protected(lab, new_blank)
    assert refusal(vm.host, "verify", vm.name, "--point", "20200101T000000Z-00000000")[1]["code"] == "point-unknown"
    assert refusal(lab.host("b"), "verify", vm.name)[1]["code"] == "not-protected"
    assert refusal(vm.host, "verify", vm.name, "--cancel")[1]["code"] == "verify-not-running"
    vm.host.vmreplica("pause", vm.name)
    assert verify(vm.host, vm.name)["verified"]["verdict"] == "equal"
    assert refusal(vm.host, "verify", vm.name, "--repair")[1]["code"] == "paused"
