"""The replica's agent is killed with SIGKILL at any step of a merge: every kept point reads as it did before."""

from collections.abc import Iterator

import pytest
from fault_kit import KEEP, Patient, running_programs
from job_kit import check_point

from vmreplica.lab import Guest
from vmreplica.lab.waiting import until

pytestmark = [pytest.mark.points, pytest.mark.slow]

TRAPS = (
    "merging.merge_images:before",
    "merging.merge_images:after",
    "merging._prepare:after",
    "merging._roll_forward:before",
    "merging._place:before",
    "merging._rename:after",
    "merging._rename:after:3",
    "merging._place:after:2",
    "merging.write_manifest:before",
    "merging.write_manifest:after",
    "merging._roll_forward:after",
)


@pytest.fixture
def pinned(resting: Patient) -> Iterator[list[str]]:
    """Pin the oldest point and the newest one of three, and pin nothing afterwards."""
    while len(resting.points()) < KEEP:
        resting.resume()
        resting.wait_published(resting.published() + 1)
        resting.rest()
    points = [point["point"] for point in resting.points()]
    kept = [points[0], points[-1]]
    for point in kept:
        resting.b.ask("points", "pin", resting.name, point)
    yield points
    for point in kept:
        resting.b.ask("points", "unpin", resting.name, point)


@pytest.mark.parametrize("trap", TRAPS)
def test_a_merge_goes_on_after_a_kill(resting: Patient, writer: Guest, pinned: list[str], trap: str) -> None:
    patient, programs = resting, running_programs(resting.lab)
    first, between, last = pinned
    known = {point: check_point(patient.b, patient.uuid, point) for point in (first, last)}
    before = patient.published()
    patient.set_trap(patient.b, trap)
    patient.resume()
    # The one between is dropped when three newer ones than the last have come: only then is there anything to merge.
    patient.wait_trapped(patient.b)
    assert {first, last} <= set(patient.points_held())
    patient.start_agent(patient.b)
    assert until(lambda: between not in patient.points_held(), 120)
    patient.wait_published(before + 2)

    for point, report in known.items():
        now = check_point(patient.b, patient.uuid, point)
        assert (now.ok, now.last) == (True, report.last), point
    listed = {point["point"]: point for point in patient.points()}
    assert listed[last]["parent"] == first
    assert not (patient.b.layout.store / patient.uuid / "merge.json").exists()
    assert running_programs(patient.lab) == programs
    assert writer.wait_record((writer.last_seen() or 0) + 1)
