"""The bench's own parts, with the real tools on this machine alone."""

import subprocess
from pathlib import Path

import pytest
from bench.content import make_system_disk, sample
from bench.hosts import run, sent_bytes
from bench.peers.nbdcopy import TlsCopy
from bench_kit import ThisMachine, served

pytestmark = pytest.mark.main_job

MiB = 1 << 20


@pytest.fixture(scope="module")
def system_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("content") / "disk.qcow2"
    make_system_disk(image, size=64 * MiB, used=24 * MiB)
    return image


def test_the_same_machine_gives_the_same_sample_of_files_within_its_budget() -> None:
    top = Path("/usr/bin")
    chosen = list(sample(top, 8 * MiB))
    assert chosen == list(sample(top, 8 * MiB))
    assert 4 * MiB < sum(path.stat().st_size for path in chosen) <= 8 * MiB


def test_a_system_disk_holds_about_what_was_asked_for(system_disk: Path) -> None:
    assert 20 * MiB < system_disk.stat().st_size < 48 * MiB
    assert not list(system_disk.parent.glob("*.raw"))


def test_nbdcopy_over_mutual_tls_makes_an_equal_disk(system_disk: Path, tmp_path: Path) -> None:
    primary, replica = ThisMachine(tmp_path / "a"), ThisMachine(tmp_path / "b")
    image = tmp_path / "copy.qcow2"
    with served(primary, system_disk) as source:
        copied = TlsCopy(primary, replica).copy_export(f"nbd+unix:///?socket={source}", image, 64 * MiB)
    subprocess.run(["qemu-img", "compare", "-q", system_disk, image], check=True)
    assert copied.seconds > 0
    assert min(copied.sender_peak_bytes, copied.receiver_peak_bytes) > MiB


def test_nbdcopy_without_a_certificate_of_the_right_authority_is_turned_away(tmp_path: Path) -> None:
    primary, replica = ThisMachine(tmp_path / "a"), ThisMachine(tmp_path / "b")
    peer = TlsCopy(primary, replica)
    TlsCopy(primary, ThisMachine(tmp_path / "c"))  # gives the sender another authority's certificates
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(MiB))
    with pytest.raises(RuntimeError, match="nbdcopy on here ended with"):
        peer.copy_export(str(raw), tmp_path / "copy.qcow2", MiB)


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ls on here ended with 2: .*nothing-here"):
        run(ThisMachine(tmp_path / "a"), "ls", "/nothing-here")


def test_the_wire_counter_leaves_out_the_loopback(tmp_path: Path) -> None:
    here = ThisMachine(tmp_path / "a")
    rows = Path("/proc/net/dev").read_text().splitlines()[2:]
    everything = sum(int(row.split(":")[1].split()[8]) for row in rows)
    assert 0 <= sent_bytes(here) <= everything + MiB
