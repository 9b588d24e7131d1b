"""What doctor sees of real VMs: bitmaps that a crash broke, checkpoints of others, full file systems; and its trial."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from libvirt_kit import Guest, PrivateLibvirtd, bitmaps, disk_xml, make_image

from vmreplica.agent.doctor.judge_vm import judge_checkpoints, judge_image
from vmreplica.agent.doctor.trial import Trials
from vmreplica.agent.doctor.versions import judge_hypervisor
from vmreplica.agent.doctor.vm_facts import image_facts
from vmreplica.hypervisor import CheckpointBroken, DiskView, Hypervisor
from vmreplica.hypervisor.examine import Examiner
from vmreplica.model.errors import Conflict, TimedOut
from vmreplica.model.findings import Finding, Severity
from vmreplica.model.units import MiB

pytestmark = pytest.mark.seeding

OWNER = "ab" * 16
OURS = "vmreplica-abababab-20261122T100000Z-00000001"


@pytest.fixture
def trials(hypervisor: Hypervisor, home: Path) -> Trials:
    return Trials(home / "trials", hypervisor)


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings if finding.severity is not Severity.OK}


def checkpoint(hypervisor: Hypervisor, guest: Guest) -> None:
    """Make the checkpoint of a cycle."""
    hypervisor.begin_backup(guest.vm, checkpoint=OURS, targets=sorted(guest.disks)).end()


def begin_foreign_job(guest: Guest, home: Path) -> None:
    """Begin a job of another program, which lasts until it is aborted."""
    disks = "".join(
        f"<disk name='{target}' backup='yes' type='file'><scratch file='{home}/other-{target}'/></disk>"
        for target in guest.disks
    )
    server = f"<server transport='unix' socket='{home}/other.sock'/>"
    (home / "job.xml").write_text(f"<domainbackup mode='pull'>{server}<disks>{disks}</disks></domainbackup>")
    guest.virsh("backup-begin", guest.name, str(home / "job.xml"))


def require_nothing_left(hypervisor: Hypervisor, guest: Guest, home: Path, *kept: str) -> None:
    """Require that no job and no file is there, and only these checkpoints."""
    assert sorted(hypervisor.checkpoints(guest.vm)) == sorted(kept)
    assert hypervisor.examiner().vm(guest.vm).job is None
    assert [path for place in ("scratch", "nbd") for path in (home / "run" / place).rglob("*.*")] == []
    assert list((home / "trials").glob("*")) == []


def test_a_trial_leaves_nothing_and_touches_no_checkpoint_of_others(
    hypervisor: Hypervisor, new_guest: Callable[..., Guest], trials: Trials, home: Path
) -> None:
    raw = home / "raw.img"
    raw.write_bytes(bytes(MiB))
    guest = new_guest("vda", devices=disk_xml("vdb", raw, form="raw"))
    foreign = [f"backup.{number}" for number in range(3)]
    for name in foreign:
        guest.virsh("checkpoint-create-as", guest.name, name, "--diskspec", "vdb,checkpoint=no")
    look = hypervisor.examiner().host()
    assert codes(judge_hypervisor(look)) <= {"version-untested", "version-known-bad"}
    (domain,) = [one for one in look.domains if one.vm == guest.vm]
    assert (domain.active, domain.job, sorted(domain.checkpoints)) == (True, None, foreign)
    assert set(domain.images) == {guest.disks["vda"], raw}
    (finding,) = judge_checkpoints(hypervisor.examiner().vm(guest.vm))
    assert (finding.code, "3 of other programs" in finding.text) == ("checkpoints-foreign", True)
    assert trials.run(guest.vm, OWNER, {"vda": None, "vdb": None}) < 30
    require_nothing_left(hypervisor, guest, home, *foreign)


def test_a_bitmap_that_a_crash_broke_is_seen_while_the_vm_is_off_and_by_the_trial(
    hypervisor: Hypervisor, guest: Guest, trials: Trials, home: Path
) -> None:
    checkpoint(hypervisor, guest)
    guest.virsh("destroy", guest.name)  # QEMU stores its bitmaps
    (sound,) = [one for one in hypervisor.inspect(guest.vm).disks if one.target == "vda"]
    assert bitmaps(guest.disks["vda"]) == [OURS]
    assert codes(judge_image(guest.name, image_facts(sound), active=False, min_free=0)) == set()
    guest.start()
    guest.crash()
    assert codes(judge_image(guest.name, image_facts(sound), active=False, min_free=0)) == {"bitmap-broken"}
    with pytest.raises(Conflict) as refused:
        trials.run(guest.vm, OWNER, dict.fromkeys(guest.disks))
    assert refused.value.code == "vm-not-running"
    guest.start()
    with pytest.raises(CheckpointBroken):
        trials.run(guest.vm, OWNER, dict.fromkeys(guest.disks, OURS))
    require_nothing_left(hypervisor, guest, home, OURS)
    trials.run(guest.vm, OWNER, dict.fromkeys(guest.disks))
    require_nothing_left(hypervisor, guest, home, OURS)


def test_a_trial_is_refused_while_a_foreign_job_runs_and_leaves_it_running(
    hypervisor: Hypervisor, guest: Guest, trials: Trials, home: Path
) -> None:
    begin_foreign_job(guest, home)
    with pytest.raises(Conflict) as refused:
        trials.run(guest.vm, OWNER, dict.fromkeys(guest.disks))
    assert refused.value.code == "backup-job-running"
    assert list((home / "trials").glob("*")) == []
    look = hypervisor.examiner().vm(guest.vm)
    assert look.job == "foreign"
    assert codes(judge_checkpoints(look)) == {"job-foreign"}
    guest.virsh("domjobabort", guest.name)


def test_what_a_killed_trial_left_is_cleared_up_by_the_next_agent(
    hypervisor: Hypervisor, guest: Guest, home: Path
) -> None:
    class Killed(Exception):
        """The process is gone: nothing more is done."""

    class Dying(Trials):
        """Dies when the job has begun."""

        def _clear(self, _record: object) -> None:
            raise Killed

    with pytest.raises(Killed):
        Dying(home / "trials", hypervisor).run(guest.vm, OWNER, dict.fromkeys(guest.disks))
    assert hypervisor.examiner().vm(guest.vm).job == "ours"
    next_agent = Trials(home / "trials", hypervisor)
    assert next_agent.checkpoints() == set(hypervisor.checkpoints(guest.vm))
    next_agent.start()
    deadline = time.monotonic() + 30
    while next_agent.checkpoints() and time.monotonic() < deadline:
        time.sleep(0.05)
    require_nothing_left(hypervisor, guest, home)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "small", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.usefixtures("libvirtd")
def test_an_image_on_a_full_file_system_is_a_problem(small: Path) -> None:
    disk = DiskView("vda", "disk", "qcow2", str(make_image(small / "vda.qcow2")), 64 * MiB, None)
    facts = image_facts(disk)
    assert facts.free is not None
    assert facts.free <= 2 * MiB
    assert codes(judge_image("web", facts, active=True, min_free=0)) == {"image-space-none"}


def test_a_chain_is_looked_at_to_its_end(home: Path) -> None:
    make_image(home / "base.qcow2")
    make_image(home / "top.qcow2", "64M", "-b", str(home / "base.qcow2"), "-F", "qcow2")
    disk = DiskView("vda", "disk", "qcow2", str(home / "top.qcow2"), 64 * MiB, None)
    assert image_facts(disk).depth == 2
    (home / "base.qcow2").unlink()
    (finding,) = judge_image("web", image_facts(disk), active=True, min_free=0)
    assert finding.code == "image-unreadable"
    assert str(home / "base.qcow2") in finding.text


def test_a_libvirt_that_hangs_does_not_hang_doctor(
    libvirtd: PrivateLibvirtd, hypervisor: Hypervisor, guest: Guest
) -> None:
    assert hypervisor.running(guest.vm)
    libvirtd.freeze(frozen=True)
    try:
        began = time.monotonic()
        with pytest.raises(TimedOut):
            Examiner(hypervisor._connection, hypervisor._files, limit=1.0).host()
        assert time.monotonic() - began < 10
    finally:
        libvirtd.freeze(frozen=False)
