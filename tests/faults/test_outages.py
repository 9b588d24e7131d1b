"""libvirtd restarts, lines break and hosts lose power in the middle of a cycle: replication goes on by itself."""

import time
from collections.abc import Iterator

import pytest
from fault_kit import Patient, running_programs
from job_kit import check_point, reasons, relation, wait_healthy, wait_reason

from vmreplica.lab import Guest, GuestSpec, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.units import MiB

pytestmark = pytest.mark.main_job

#: A line on which the initial replication of the guest takes about ten seconds.
_SLOW_MBIT = 30.0
#: So small that reading has to wait for the line, and the backup job lasts as long as the transfer.
_SPOOL_CAP = 16 * MiB


@pytest.fixture(scope="module")
def busy(session_lab: Lab) -> Iterator[Guest]:
    spec = GuestSpec(name="busy", disks=2, interval_ms=100, size=160 * MiB, fill=80 * MiB)
    guest = session_lab.host("a").add_guest(spec)
    guest.wait_booted()
    yield guest
    guest.remove()


@pytest.fixture
def patient(lab: Lab, busy: Guest) -> Iterator[Patient]:
    """Yield the guest, not protected yet; its agent may keep little in the spool."""
    patient = Patient(lab, busy.name, busy.uuid)
    config = patient.a.layout.agent_config
    usual = config.read_text()
    config.write_text(f"{usual}\n[limits]\nspool_cap = {_SPOOL_CAP}\n")
    patient.set_trap(patient.a, "")
    yield patient
    config.write_text(usual)
    lab.restore()
    if patient.is_protected():
        patient.disable()
    patient.a.stop_agent()
    lab.restore()


def begin_slowly(patient: Patient) -> None:
    """Begin the initial replication over a slow line; a segment is across, another on its way, most are unread."""
    patient.lab.slow("a", "b", mbit=_SLOW_MBIT)
    patient.enable()
    assert until(lambda: answered(patient) >= 1 and len(patient.sendings()) > 2 * answered(patient), 60)


def answered(patient: Patient) -> int:
    return sum(sending.answered for sending in patient.sendings())


def require_well(patient: Patient, busy: Guest) -> None:
    """Let another cycle follow, then require that every point is whole and nothing is left behind."""
    patient.sync()
    patient.wait_published(patient.published() + 1)
    patient.rest()
    patient.require_nothing_twice()
    patient.require_sound_points()
    patient.require_clean()
    for point in patient.points():
        check_point(patient.b, patient.uuid, point["point"])
    record = busy.last_seen() or 0
    assert busy.wait_record(record + 1) > record


def test_a_restarted_libvirtd_does_not_end_an_initial_replication(patient: Patient, busy: Guest) -> None:
    boots, before, programs = busy.said().count("boot complete"), patient.published(), running_programs(patient.lab)
    begin_slowly(patient)
    for hard in (False, True):
        so_far = answered(patient)
        patient.a.restart_libvirtd(hard=hard)
        assert until(lambda so_far=so_far: answered(patient) > so_far, 60)  # type: ignore[misc]
    first = patient.wait_published(before + 1)[before]
    assert first["kind"] == "initial"
    assert {sending.point for sending in patient.sendings() if sending.point <= first["point"]} == {first["point"]}
    require_well(patient, busy)
    assert busy.said().count("boot complete") == boots
    assert running_programs(patient.lab) == programs


def test_a_line_cut_in_the_middle_of_a_segment_costs_that_segment_at_most(patient: Patient, busy: Guest) -> None:
    before = patient.published()
    begin_slowly(patient)
    patient.lab.cut("a", "b")
    so_far = answered(patient)
    time.sleep(6)
    assert answered(patient) <= so_far + 1
    patient.lab.heal("a", "b")
    first = patient.wait_published(before + 1)[before]
    assert first["kind"] == "initial"
    assert {sending.point for sending in patient.sendings() if sending.point <= first["point"]} == {first["point"]}
    require_well(patient, busy)


def test_a_long_cut_leaves_one_pending_point_and_is_told_with_its_reason(patient: Patient, busy: Guest) -> None:
    patient.enable()
    patient.wait_published(patient.published() + 2)
    patient.lab.cut("a", "b")
    assert wait_reason(patient.a, busy.name, "rpo-exceeded")["hint"]
    # A dead line is noticed long before a request's own time limit of a minute.
    assert wait_reason(patient.a, busy.name, "peer-unreachable", limit=50)["hint"]
    assert until(lambda: reasons(patient.a, busy.name)["rpo-exceeded"]["level"] == "critical", 60)
    assert relation(patient.a, busy.name)["last_cycle"]["outcome"] == "failed"
    assert len(patient.pending()) <= 1
    written = busy.wait_record((busy.last_seen() or 0) + 1)
    patient.lab.heal("a", "b")
    wait_healthy(patient.a, busy.name)
    require_well(patient, busy)
    assert check_point(patient.b, patient.uuid, patient.points_held()[-1]).last >= written
    assert patient.history()[0]["kind"] == "delta"


def test_a_replica_that_lost_its_power_gets_only_what_it_lacks(patient: Patient, busy: Guest) -> None:
    before = patient.published()
    begin_slowly(patient)
    patient.lab.crash("b")
    time.sleep(2)
    patient.lab.start("b")
    first = patient.wait_published(before + 1)[before]
    assert first["kind"] == "initial"
    assert {sending.point for sending in patient.sendings() if sending.point <= first["point"]} == {first["point"]}
    require_well(patient, busy)


def test_a_primary_that_lost_its_power_sends_what_differs_and_says_why(patient: Patient, busy: Guest) -> None:
    patient.enable()
    cycles = patient.wait_published(patient.published() + 2)
    before, whole = len(cycles), next(cycle for cycle in reversed(cycles) if cycle["kind"] == "initial")
    kept = patient.points_held()
    patient.lab.crash("a")
    patient.lab.start("a")
    assert wait_reason(patient.a, busy.name, "vm-off")["hint"]
    busy.start()
    again = patient.wait_published(before + 1)[before]
    assert again["kind"] == "resync"
    assert again["wire_bytes"] < whole["wire_bytes"] / 2, "the disks are compared with the fingerprint, not sent again"
    assert "checkpoint" in again["reason"] or "tracking" in again["reason"] or "bitmap" in again["reason"]
    assert kept[-1] in patient.points_held()
    require_well(patient, busy)
    assert {cycle["kind"] for cycle in patient.history()[: patient.published() - before - 1]} == {"delta"}
