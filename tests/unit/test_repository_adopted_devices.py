"""Old disks on block devices as bases in place: written where they are, known again, and never mistaken for others."""

import os
import subprocess
from pathlib import Path

import pytest
from adoption_kit import POINT, adoption, new_primary, qemu_img, qemu_io, some_content
from base_kit import MakeDevice, fill, open_store, raw_bytes, wish
from device_kit import detach
from point_kit import OTHER_VM, VM
from repository_kit import OWNER, Primary, check_all, noise

from vmreplica.model.errors import Conflict, Corrupt, NoSpace, VmReplicaError
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.repository import Replica

pytestmark = [
    pytest.mark.failover,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make block devices"),
]

#: A device is as big as its disk.
WHOLE = 41 * CLUSTER


def adopted(store: Path, device: Path, form: str) -> tuple[Replica, Primary]:
    """A replica whose base is this device, full of some content, and its new primary."""
    content = some_content()
    if form == "qcow2":
        qemu_img("create", "-q", "-f", "qcow2", str(device), str(WHOLE))
    for number, data in content.items():
        pattern = store.parent / "cluster"
        pattern.write_bytes(data)
        qemu_io(device, form, f"write -s {pattern} {number * CLUSTER} {CLUSTER}")
    replica = open_store(store).adopt(adoption({"vda": device}, size=WHOLE, form=form))
    replica.finish_adoption()
    return replica, new_primary({"vda": content}, size=WHOLE)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_an_old_disk_on_a_device_is_the_base_where_it_is(tmp_path: Path, device: MakeDevice, form: str) -> None:
    loop = device(WHOLE if form == "raw" else 8 * MiB, fill=b"")
    replica, primary = adopted(tmp_path / "store", loop, form)
    assert check_all(replica, primary) == [POINT]
    for turn in range(2):
        fill(replica, primary, 2, seed=turn)
        replica.apply_retention()
        replica.verify_devices()
        listed = check_all(replica, primary)
    assert listed == sorted(primary.expected)[-2:]
    if form == "raw":
        assert raw_bytes(loop, WHOLE) == primary.expected[listed[0]]["vda"]
    again = open_store(tmp_path / "store").replica(VM)
    assert check_all(again, primary) == listed
    assert not again.position().complaints


def test_another_device_under_the_name_is_neither_written_nor_started_from(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(WHOLE, fill=b"")
    replica, primary = adopted(tmp_path / "store", loop, "raw")
    fill(replica, primary, 2)
    detach(loop)
    with pytest.raises(VmReplicaError):
        replica.apply_retention()
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"\xdd" * WHOLE)
    subprocess.run(["losetup", str(loop), str(stranger)], check=True)
    assert "another device" in replica.position().complaints[0]
    for act in (replica.apply_retention, replica.verify_devices):
        with pytest.raises(Corrupt, match="another device"):
            act()
    detach(loop)
    assert stranger.read_bytes() == b"\xdd" * WHOLE
    subprocess.run(["losetup", str(loop), str(tmp_path / "device0")], check=True)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]


def test_a_device_that_somebody_else_wrote_to_is_neither_written_nor_started_from(
    tmp_path: Path, device: MakeDevice
) -> None:
    loop = device(WHOLE, fill=b"")
    replica, primary = adopted(tmp_path / "store", loop, "raw")
    fill(replica, primary, 2)
    with loop.open("r+b") as fh:
        fh.write(b"\x55" * MiB)
    for act in (replica.apply_retention, replica.verify_devices):
        with pytest.raises(Corrupt, match="somebody else"):
            act()


def test_a_disk_that_outgrows_its_old_device_waits_until_that_is_bigger(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(WHOLE, fill=b"")
    replica, primary = adopted(tmp_path / "store", loop, "raw")
    primary.sizes["vda"] = WHOLE + 10 * CLUSTER
    primary.send(replica, {"vda": {45: noise(45)}})
    primary.send(replica, {"vda": {1: noise(1)}})
    with pytest.raises(NoSpace, match="does not fit") as caught:
        replica.apply_retention()
    assert caught.value.code == "base-device-small"
    assert check_all(replica, primary)[-3:] == sorted(primary.expected)[-3:]
    os.truncate(tmp_path / "device0", WHOLE + 10 * CLUSTER)
    subprocess.run(["losetup", "--set-capacity", str(loop)], check=True)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]


def test_a_device_that_is_an_old_disk_is_not_given_to_another_vm(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(WHOLE, fill=b"")
    adopted(tmp_path / "store", loop, "raw")
    with pytest.raises(Conflict, match="holds a base of web already"):
        open_store(tmp_path / "store").create(OTHER_VM, OWNER, wish({"vda": (loop, MiB)}, name="other"))
