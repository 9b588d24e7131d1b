"""What is said of points: an opening and a summary with every field filled in, of which a test names what it needs."""

import datetime as dt
from collections.abc import Mapping

from vmreplica.model.body import joined
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.point import DiskSpec, PointOpening, PointSummary
from vmreplica.model.units import MiB
from vmreplica.spool import SpoolDisk

VM = "11111111-2222-3333-4444-555555555555"
OTHER_VM = "99999999-2222-3333-4444-555555555555"
INSTANT = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
ONE_DISK: Mapping[DiskTarget, int] = {"vda": 64 * MiB}


def specs(disks: Mapping[DiskTarget, int]) -> tuple[DiskSpec, ...]:
    """Disks with their sizes in bytes."""
    return tuple(DiskSpec(target=target, size=size) for target, size in disks.items())


def make_opening(point: PointId, disks: Mapping[DiskTarget, int] = ONE_DISK, **fields: object) -> PointOpening:
    """An opening: of the whole copy of a VM, unless fields say otherwise; with a parent, of a delta."""
    usual = {
        "vm": VM,
        "name": "web",
        "point": point,
        "parent": None,
        "kind": "initial" if fields.get("parent") is None else "delta",
        "instant": INSTANT,
        "epoch": 0,
        "checkpoint": None,
        "disks": specs(disks),
        "definition": "<domain/>",
        "interval": 300,
        "keep": 24,
    }
    return PointOpening.model_validate(usual | fields)


def make_summary(point: PointId, disks: Mapping[DiskTarget, int] = ONE_DISK, **fields: object) -> PointSummary:
    """A published point, the first one of its VM, unless fields say otherwise."""
    usual = {
        "point": point,
        "parent": None,
        "kind": "initial",
        "consistency": "crash",
        "instant": INSTANT,
        "published": fields.get("instant", INSTANT),
        "checkpoint": None,
        "disks": specs(disks),
        "guest_bytes": 0,
        "wire_bytes": 0,
        "stored_bytes": 0,
    }
    return PointSummary.model_validate(usual | fields)


def segment_of(disk: SpoolDisk, number: int) -> bytes:
    """The bytes of a segment that waits in the spool."""
    with disk.body(number) as body:
        return joined(body)
