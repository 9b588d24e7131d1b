"""The whole machine fails over: UEFI variables and the TPM's state are those of the point, in copies."""

from pathlib import Path

import pytest
from job_kit import NewBlank, enable, inside

from vmreplica.lab import Host, Lab

pytestmark = pytest.mark.failover

TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"


def test_variables_and_tpm_state_of_the_chosen_point_come_to_the_replica(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, efi=True, devices=TPM)
    nvram, tpm = _nvram(a, vm.name), _tpm(a, vm.uuid)
    first = nvram.read_bytes()
    older = enable(a, vm.name, "--keep", "5", every="24h")["result"]["point"]
    nvram.write_bytes(_written(first))
    sealed = {path.name: path.read_bytes() for path in tpm.iterdir() if not path.name.startswith(".")}
    assert sealed
    newer = a.ask("sync", vm.name)["result"]["point"]

    tested = b.ask("failover", vm.name, "--test", "--point", older)
    copy = tested["test"]
    assert _nvram(b, copy["name"]).read_bytes()[-100:] == first[-100:]
    assert "TPM" not in " ".join(tested["plan"]["notes"])
    b.ask("failover", vm.name, "--test", "--cancel")
    assert not _tpm(b, copy["vm"]).exists()

    vm.stop()
    plan = b.ask("failover", vm.name, "--dry-run")
    done = b.ask("failover", vm.name, "--yes")
    assert done["plan"]["point"] == newer
    assert plan["notes"] == done["plan"]["notes"]
    assert _nvram(b, vm.name).read_bytes()[-100:] == _written(first)[-100:]
    assert {path.name for path in _tpm(b, vm.uuid).iterdir()} >= set(sealed)
    b.ask("failover", vm.name, "--cancel", "--yes")
    assert not _tpm(b, vm.uuid).exists()
    assert not list(inside(b, Path("/var/lib/libvirt/qemu/nvram")).glob(f"*{vm.uuid}*")), "no trace is left"


def _written(first: bytes) -> bytes:
    return first[:-16] + b"boot from vdb now"[:16]


def _nvram(host: Host, name: str) -> Path:
    xml = host.virsh("dumpxml", name).stdout
    return inside(host, Path(xml.split("</nvram>")[0].rpartition(">")[2]))


def _tpm(host: Host, vm: str) -> Path:
    return inside(host, Path(f"/var/lib/libvirt/swtpm/{vm}/tpm2"))
