"""An agent is killed with SIGKILL while the replica begins with an existing copy: it goes on where it was."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kit import Patient, kills, running_programs
from job_kit import Blank, qemu_img, relation, same_content

from vmreplica.lab import Host
from vmreplica.lab.waiting import until
from vmreplica.model.seed import ExistingDisk, ExistingSeed
from vmreplica.model.units import MiB

pytestmark = pytest.mark.seeding


@pytest.fixture
def copy(unprotected: Patient, filled: Blank) -> Iterator[Path]:
    """Give a copy of the first disk, of which one MiB differs."""
    path = unprotected.b.layout.seeds / "filled.qcow2"
    qemu_img("convert", "-U", "-O", "qcow2", str(filled.images["vda"]), str(path))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 91 8M 1M", str(path)], check=True)
    yield path
    path.unlink()


@pytest.mark.parametrize(
    ("side", "trap"),
    kills(
        quick=[
            ("b", "Replica.put_segment:after:2"),
            ("a", "PeerClient.fingerprint:after"),
        ],
        thorough=[
            ("b", "Spool.create:after"),
            ("b", "SpoolDisk.append:after:2"),
            ("b", "Replica.open_point:after"),
            ("b", "Replica.complete:after"),
            ("b", "SpoolPoint.finish:after"),
            ("b", "publish._finish:after"),
            ("a", "PeerClient.offer:after"),
            ("a", "PeerClient.position:after:2"),
            ("a", "PeerClient.put_segment:after"),
        ],
    ),
)
def test_seeding_goes_on_after_a_kill(unprotected: Patient, filled: Blank, copy: Path, side: str, trap: str) -> None:
    patient, host = unprotected, unprotected.lab.host(side)
    wish = ExistingSeed(disks=(ExistingDisk(target="vda", path=str(copy)),))
    programs, before = running_programs(patient.lab), patient.published()
    patient.set_trap(host, trap)
    patient.enable(wish)
    patient.wait_trapped(host)
    patient.start_agent(host)
    if trap == "PeerClient.offer:after":
        patient.enable(wish)  # nobody had been answered
    cycle = patient.wait_published(before + 1)[before]
    patient.sync()
    patient.wait_published(before + 2)
    patient.rest()

    assert cycle["kind"] == "resync"
    assert sum(sending.size for sending in patient.sendings() if sending.answered) <= 3 * MiB
    patient.require_told()
    patient.require_sound_points()
    for point in patient.points():
        assert point["kind"] != "seed", "it is folded away as soon as a recovery point stands on it"
        for image, original in zip(patient.images(point["point"]), filled.images.values(), strict=True):
            assert same_content(image, original)
    patient.require_clean()
    assert list((patient.b.layout.state_dir / "seeding").iterdir()) == [patient.b.layout.state_dir / "seeding/boot_id"]
    assert running_programs(patient.lab) == programs


def test_reading_is_seen_on_both_sides_and_given_up_with_the_protection(
    unprotected: Patient, filled: Blank, copy: Path
) -> None:
    patient, a, b = unprotected, unprotected.a, unprotected.b
    programs = running_programs(patient.lab)
    go_on = b.layout.dir / "sent.go"
    patient.set_trap(b, "Replica.put_segment:hold:2")
    try:
        patient.enable(ExistingSeed(disks=(ExistingDisk(target="vda", path=str(copy)),)))
        assert until(lambda: "trapped" in (b.layout.dir / "sent").read_text(), 60)
        there = relation(b, filled.name)
        assert (there["state"], there["points"], there["latest"]) == ("waiting-for-initial", 0, None)
        assert there["progress"]["phase"] == "reading the existing copy"
        assert there["progress"]["total_bytes"] > 0
        assert until(lambda: _phase(a, filled) == "on the replica: reading the existing copy", 30)
        assert relation(a, filled.name)["state"] == "initial-replication"
        threading.Timer(1.0, go_on.touch).start()
        patient.disable()
    finally:
        go_on.touch()
    assert filled.uuid not in {known["vm"] for known in b.ask("status")["relationships"]}
    assert not (b.layout.store / filled.uuid).exists()
    assert list((b.layout.state_dir / "seeding").iterdir()) == [b.layout.state_dir / "seeding" / "boot_id"]
    go_on.unlink()
    assert running_programs(patient.lab) == programs


def _phase(host: Host, vm: Blank) -> str:
    progress = relation(host, vm.name)["progress"]
    return str(progress["phase"]) if progress else ""
