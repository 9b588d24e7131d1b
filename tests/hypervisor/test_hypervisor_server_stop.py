"""Ending a job while its view is being read never stops the guest: QEMU 7.2 hangs in nbd-server-stop otherwise."""

import contextlib
import datetime as dt
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from libvirt_kit import Guest, PrivateLibvirtd
from point_kit import make_opening

from vmreplica.capture import capture_point
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import Conflict
from vmreplica.model.ids import checkpoint_name, new_point_id
from vmreplica.model.point import PointOpening
from vmreplica.spool import Spool

pytestmark = pytest.mark.main_job

REPLICA = "ab" * 16
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def opening(guest: Guest, size: int, number: int) -> PointOpening:
    point = new_point_id(START + dt.timedelta(minutes=number), f"{number:08x}")
    return make_opening(
        point, {"vda": size, "vdb": size}, vm=guest.vm, name=guest.name, checkpoint=checkpoint_name(REPLICA, point)
    )


def test_a_capture_cancelled_at_any_moment_leaves_the_guest_running(
    hypervisor: Hypervisor, libvirtd: PrivateLibvirtd, new_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    guest = new_guest("vda", "vdb")
    size = hypervisor.inspect(guest.vm).disks[0].size
    spool = Spool(tmp_path / "spool", 1 << 30)
    moments = random.Random(7)
    for number in range(25):
        point = spool.create(opening(guest, size, number))
        checkpoint = point.opening.checkpoint
        assert checkpoint is not None
        cancel = threading.Event()
        timer = threading.Timer(moments.random() * 0.005, cancel.set)
        with hypervisor.begin_backup(guest.vm, checkpoint=checkpoint, targets=("vda", "vdb")) as job:
            timer.start()
            with contextlib.suppress(Conflict):
                capture_point(job.exports, point, workers=4, cancel=cancel)
        timer.join()
        hypervisor.delete_checkpoint(guest.vm, checkpoint)
        point.discard()
        assert "VM status" in libvirtd.virsh("qemu-monitor-command", guest.name, "--hmp", "info status")
