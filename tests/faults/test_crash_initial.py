"""An agent is killed with SIGKILL at any instant of an initial replication: it goes on where it was."""

import pytest
from fault_kit import Patient, kills, running_programs
from job_kit import Blank, same_content

pytestmark = pytest.mark.main_job


@pytest.mark.parametrize(
    ("side", "trap"),
    kills(
        quick=[
            ("a", "SpoolDisk.append:after:3"),
            ("a", "PeerClient.put_segment:after:2"),
            ("a", "PeerClient.complete:after"),
            ("b", "Replica.put_segment:after:2"),
            ("b", "publish._finish:after"),
        ],
        thorough=[
            ("a", "Spool.create:after"),
            ("a", "CheckpointShelf.keep:before"),
            ("a", "Hypervisor.begin_backup:after"),
            ("a", "PeerClient.open_point:after"),
            ("a", "SpoolDisk.acknowledge:after:2"),
            ("a", "SpoolDisk.finish:after"),
            ("a", "Hypervisor.end_job:after"),
            ("b", "Replica.open_point:after"),
            ("b", "Replica.put_segment:before:3"),
            ("b", "Replica.complete:before"),
            ("b", "publish.publish_dir:after"),
        ],
    ),
)
def test_an_initial_replication_goes_on_after_a_kill(unprotected: Patient, filled: Blank, side: str, trap: str) -> None:
    patient, host = unprotected, unprotected.lab.host(side)
    programs, before = running_programs(patient.lab), patient.published()
    patient.set_trap(host, trap)
    patient.enable()
    patient.wait_trapped(host)
    patient.start_agent(host)
    patient.wait_published(before + 1)
    patient.sync()
    patient.wait_published(before + 2)
    patient.rest()

    assert len({sending.key for sending in patient.sendings()}) >= 4
    assert len({sending.point for sending in patient.sendings()}) == 1, "it was begun anew"
    patient.require_nothing_twice()
    patient.require_told()
    patient.require_sound_points()
    for point in patient.points():
        for image, original in zip(patient.images(point["point"]), filled.images.values(), strict=True):
            assert same_content(image, original)
    patient.require_clean()
    assert running_programs(patient.lab) == programs
