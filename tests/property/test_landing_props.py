"""Which base goes to its device next: never one that somebody still reads from a device, never one that is held."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.model.point import AdoptedBase, BaseDevice, DiskManifest, Manifest
from vmreplica.repository.landing import next_landing

pytestmark = pytest.mark.seeding

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TARGETS = ("vda", "vdb", "vdc")
DEVICES = {target: BaseDevice(path=f"/dev/vg/{target}", identity=target) for target in TARGETS}


#: Where a base is: in its image, on a device that was given for it, or on the VM's own old disk.
KINDS = ("image", "device", "old")


def manifest(number: int, parent: str | None, disks: dict[str, str]) -> Manifest:
    """A point with these disks, each of one of the kinds."""
    return Manifest(
        vm="11111111-2222-3333-4444-555555555555",
        name="web",
        point=f"20260101T0000{number:02}Z-{number:08x}",
        parent=parent,
        kind="delta" if parent else "initial",
        consistency="crash",
        instant=NOW,
        published=NOW,
        epoch=0,
        checkpoint=None,
        disks=tuple(
            DiskManifest(
                target=target,
                size=512,
                file=f"{target}.qcow2",
                file_bytes=0,
                tables_digest="",
                segments=0,
                device=DEVICES[target] if kind == "device" else None,
                adopted=AdoptedBase(path=f"/images/{target}", format="raw") if kind == "old" else None,
            )
            for target, kind in disks.items()
        ),
        guest_bytes=0,
        wire_bytes=0,
    )


@st.composite
def chains(draw: st.DrawFn) -> list[Manifest]:
    """Points, oldest first, each over the one before or alone."""
    made: list[Manifest] = []
    for number in range(draw(st.integers(0, 4))):
        alone = not made or draw(st.booleans())
        kinds = st.sampled_from(KINDS) if alone else st.just("image")
        disks = draw(st.dictionaries(st.sampled_from(TARGETS), kinds, min_size=1))
        made.append(manifest(number, None if alone else made[-1].point, disks))
    return made


@given(chains(), st.sets(st.sampled_from(TARGETS)), st.sets(st.integers(0, 3)))
def test_a_base_moves_only_when_nobody_needs_the_device_or_the_point(
    points: list[Manifest], wished: set[str], held: set[int]
) -> None:
    devices = {target: DEVICES[target] for target in wished}
    ids = {points[number].point for number in held if number < len(points)}
    wanted = next_landing(points, devices, lambda point: point in ids)
    used = {disk.target for point in points for disk in point.disks if disk.device is not None}
    oldest = points[0].disks if points else ()
    free = [disk.target for disk in oldest if disk.target in wished - used and disk.adopted is None]
    if ids or not free:
        assert wanted is None
    else:
        assert wanted == (free[0], DEVICES[free[0]])
