"""Which block devices a base may stand on, and whose they are."""

import os
import subprocess
from pathlib import Path

import pytest
from base_kit import SIZE, MakeDevice, fill, open_store, raw_bytes, wish
from point_kit import VM
from repository_kit import OWNER, Primary, offer

from vmreplica.fsio.blockdev import contents, look
from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.policy import ReplicaOffer
from vmreplica.model.units import MiB
from vmreplica.repository import Repository

pytestmark = [
    pytest.mark.seeding,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make block devices"),
]


def refused(repository: Repository, wished: ReplicaOffer, *, vm: str = VM) -> str:
    with pytest.raises(VmReplicaError) as caught:
        repository.create(vm, OWNER, wished)
    assert caught.value.hint
    assert not (repository.store / vm).exists()
    return caught.value.code


def test_only_a_free_block_device_that_is_given_away_and_big_enough_is_taken(
    tmp_path: Path, device: MakeDevice
) -> None:
    loop, small = device(4 * MiB), device(MiB)
    repository = open_store(tmp_path / "store")
    assert refused(open_store(tmp_path / "none", allowed=()), wish({"vda": (loop, SIZE)})) == "base-device-forbidden"
    narrow = open_store(tmp_path / "narrow", allowed=("/dev/vg/*",))
    assert refused(narrow, wish({"vda": (loop, SIZE)})) == "base-device-forbidden"
    assert refused(repository, wish({"vda": (small, SIZE)})) == "base-device-small"
    assert refused(repository, wish({"vda": (Path("/dev/loop-none"), SIZE)})) == "device-missing"
    null = open_store(tmp_path / "null", allowed=("/dev/*",))
    assert refused(null, wish({"vda": (Path("/dev/null"), SIZE)})) == "device-not-block"
    with loop.open("rb"):
        assert refused(repository, wish({"vda": (loop, SIZE)})) == "device-in-use"
    assert refused(repository, wish({"vda": (loop, SIZE), "vdb": (loop, SIZE)})) == "base-device-taken"


def test_a_mounted_device_is_refused_and_what_is_on_a_free_one_is_told_before_it_is_lost(
    tmp_path: Path, device: MakeDevice
) -> None:
    loop = device(4 * MiB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "photos", str(loop)], check=True)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", str(loop), str(mounted)], check=True)
    try:
        assert refused(open_store(tmp_path / "store"), wish({"vda": (loop, SIZE)})) == "device-in-use"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    repository = open_store(tmp_path / "store")
    with pytest.raises(Conflict, match=rf"{loop} \(4.0 MiB; on it is ext4 with the label 'photos'\)") as caught:
        repository.create(VM, OWNER, wish({"vda": (loop, SIZE)}, erase=False))
    assert caught.value.code == "base-device-unconfirmed"
    assert "photos" in contents(str(loop)), "nothing was done to it"
    replica = repository.create(VM, OWNER, wish({"vda": (loop, SIZE)}))
    assert repository.create(VM, OWNER, wish({"vda": (loop, SIZE)}, erase=False)) is replica, "it has it already"
    other = "22222222-2222-3333-4444-555555555555"
    assert refused(repository, wish({"vda": (loop, SIZE)}, name="db"), vm=other) == "base-device-taken"


def test_a_disk_keeps_the_device_it_has(tmp_path: Path, device: MakeDevice) -> None:
    loop, second = device(4 * MiB), device(4 * MiB)
    repository = open_store(tmp_path)
    repository.create(VM, OWNER, wish({"vda": (loop, SIZE)}))
    with pytest.raises(Conflict) as caught:
        repository.create(VM, OWNER, wish({"vda": (second, SIZE)}))
    assert caught.value.code == "base-device-differs"
    replica = repository.create(VM, OWNER, offer(keep=5))
    assert replica.record.base_devices["vda"].path == str(loop)
    assert replica.record.base_devices["vda"].identity == look(str(loop)).identity != ""


def test_removing_a_replica_leaves_the_device_as_it_is(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(4 * MiB)
    repository = open_store(tmp_path / "store")
    replica, primary = repository.create(VM, OWNER, wish({"vda": (loop, SIZE)})), Primary({"vda": SIZE})
    fill(replica, primary, 1)
    replica.apply_retention()
    repository.remove(VM)
    assert raw_bytes(loop, SIZE) == primary.expected[str(primary.latest)]["vda"]
    repository.create(VM, OWNER, wish({"vda": (loop, SIZE)}))
