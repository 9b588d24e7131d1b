"""An agent is killed with SIGKILL at any instant of a delta of a guest that writes: every point stays whole."""

import pytest
from fault_kit import Patient, kills, running_programs
from job_kit import check_point

from vmreplica.lab import Guest
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.main_job


@pytest.mark.parametrize(
    ("side", "trap"),
    kills(
        quick=[
            ("a", "CheckpointShelf.keep:before"),
            ("a", "Hypervisor.begin_backup:after"),
            ("a", "SpoolPoint.discard:before"),
            ("a", "Hypervisor.delete_checkpoint:before"),
            ("b", "Replica.complete:before"),
            ("b", "publish.publish_dir:after"),
            ("b", "folding._switch:before:2"),
        ],
        thorough=[
            ("a", "Spool.create:after"),
            ("a", "SpoolDisk.append:after"),
            ("a", "PeerClient.put_segment:before"),
            ("a", "SpoolPoint.finish:before"),
            ("a", "Hypervisor.end_job:before"),
            ("a", "PeerClient.complete:before"),
            ("a", "PeerClient.complete:after"),
            ("a", "Hypervisor.delete_checkpoint:after"),
            ("b", "Replica.open_point:after"),
            ("b", "Replica.put_segment:before"),
            ("b", "Replica.put_segment:after"),
            ("b", "publish._finish:after"),
            ("b", "publish._commit:before"),
            ("b", "Replica.complete:after"),
            ("b", "folding._prepare:after"),
            ("b", "folding._reclaim:before"),
        ],
    ),
)
def test_deltas_go_on_after_a_kill(resting: Patient, writer: Guest, side: str, trap: str) -> None:
    patient, host = resting, resting.lab.host(side)
    programs, before, newest = running_programs(patient.lab), patient.published(), patient.points()[-1]["point"]
    patient.set_trap(host, trap)
    patient.resume()
    patient.wait_trapped(host)
    written = writer.wait_record((writer.last_seen() or 0) + 5)
    patient.start_agent(host)
    patient.wait_published(before + 1)
    patient.sync()
    after = patient.wait_published(before + 2)
    patient.rest()

    assert {cycle["kind"] for cycle in after[before:]} == {"delta"}
    patient.require_nothing_twice()
    patient.require_sound_points()
    patient.require_clean()
    new = [point["point"] for point in patient.points() if point["point"] > newest]
    reports = [check_point(patient.b, patient.uuid, point) for point in new]
    assert [report.last for report in reports] == sorted(report.last for report in reports)
    assert reports[-1].last >= written
    assert running_programs(patient.lab) == programs
    assert patient.a.virsh("domstate", writer.name).stdout.strip() == "running"


def test_a_job_left_after_reading_is_ended_although_the_replica_is_away(resting: Patient, writer: Guest) -> None:
    patient, before = resting, resting.published()
    patient.set_trap(patient.a, "Hypervisor.end_job:before")
    patient.resume()
    patient.wait_trapped(patient.a)
    assert job_runs(patient)
    patient.lab.cut("a", "b")
    patient.start_agent(patient.a)
    assert until(lambda: not job_runs(patient), 60), "nobody watches its scratch space"
    written = writer.wait_record((writer.last_seen() or 0) + 5)
    patient.lab.heal("a", "b")
    patient.wait_published(before + 1)
    patient.sync()
    patient.wait_published(before + 2)
    patient.rest()
    patient.require_sound_points()
    patient.require_clean()
    assert check_point(patient.b, patient.uuid, patient.points()[-1]["point"]).last >= written


def job_runs(patient: Patient) -> bool:
    """Tell whether a backup job runs."""
    return patient.a.virsh("backup-dumpxml", patient.name, check=False).returncode == 0
