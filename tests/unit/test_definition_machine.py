"""Firmware, TPM and drives of a definition built for the replica: those that fit what the VM brings along."""

from pathlib import Path

import pytest
from definition_kit import DISK, built, domain, find, tree

from vmreplica.hypervisor.firmware import Firmware

pytestmark = pytest.mark.failover

FIRMWARES = (
    Firmware("/fw/secure.fd", "/fw/vars.fd", 4096, secure=True, arch="x86_64", machines=("pc-q35-*",)),
    Firmware("/fw/plain.fd", "/fw/vars.fd", 4096, secure=False, arch="x86_64", machines=("pc-q35-*", "pc-i440fx-*")),
)
ACPI = "<features><acpi/></features>"
NVRAM = Path("/libvirt/nvram/x.fd")


@pytest.mark.parametrize(
    ("os", "more", "machine", "code"),
    [
        ("<loader type='pflash' secure='yes'>/evil</loader><nvram>/evil</nvram>", "", "q35", "secure"),
        ("<loader type='pflash'>/evil</loader><nvram>/evil</nvram>", "", "q35", "plain"),
        ("<firmware><feature enabled='no' name='secure-boot'/></firmware>", "", "pc-q35-7.2", "plain"),
        (
            "<firmware><feature enabled='yes' name='secure-boot'/></firmware>",
            "<features><acpi/></features>",
            "q35",
            "secure",
        ),
        ("", "", "q35", "secure"),
        ("", "", "pc", "plain"),
    ],
)
def test_a_vm_with_its_own_variables_gets_a_firmware_they_fit(os: str, more: str, machine: str, code: str) -> None:
    xml = domain(os=os, more=more, machine=machine, attributes="firmware='efi'")
    definition = built(xml, nvram=NVRAM, nvram_size=4096, firmwares=FIRMWARES)
    loader = find(definition, "os/loader")
    assert (loader.text, loader.get("type")) == (f"/fw/{code}.fd", "pflash")
    assert loader.get("secure") == ("yes" if code == "secure" else "no")
    assert find(definition, "os/nvram").text == str(NVRAM)
    assert find(definition, "os").get("firmware") is None
    assert "evil" not in definition.xml
    smm = tree(definition).find("features/smm[@state='on']")
    assert (smm is not None) == (code == "secure"), "secure boot needs it"


def test_variables_that_fit_no_firmware_here_are_left_out_in_words() -> None:
    xml = domain(attributes="firmware='efi'")
    definition = built(xml, nvram=NVRAM, nvram_size=131072, firmwares=FIRMWARES)
    assert find(definition, "os").get("firmware") == "efi"
    assert tree(definition).find("os/nvram") is None
    assert any("131072 bytes" in note and "install" in note for note in definition.notes)


def test_a_tpm_whose_state_comes_along_keeps_its_version_and_needs_no_word() -> None:
    tpm = "<tpm model='tpm-tis'><backend type='emulator' version='{}'/></tpm>"
    kept = built(domain(DISK + tpm.format("1.2")), tpm="1.2")
    assert find(kept, "devices/tpm/backend").get("version") == "1.2"
    assert kept.notes == ()
    empty = built(domain(DISK + tpm.format("x'/><y z='")))
    assert find(empty, "devices/tpm/backend").get("version") == "2.0"
    assert "recovery keys" in empty.notes[-1]


def test_a_cd_rom_drive_stays_without_its_medium() -> None:
    drive = (
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/evil.iso'/>"
        "<target dev='sda' bus='sata' tray='open'/><readonly/><boot order='2'/>"
        "<address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>"
        "<disk type='network' device='cdrom'><source protocol='http' name='evil'/><target dev='sdb' bus='scsi'/></disk>"
        "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/></disk>"
        "<disk type='file' device='cdrom'><target dev='evil' bus='ide'/></disk>"
        "<disk type='file' device='floppy'><source file='/evil'/><target dev='fda' bus='fdc'/></disk>"
    )
    definition = built(domain(DISK + drive))
    drives = tree(definition).findall("devices/disk[@device='cdrom']")
    assert [place.get("dev") for drive in drives if (place := drive.find("target")) is not None] == [
        "sda",
        "sdb",
        "hdc",
    ]
    assert [drive.find("source") for drive in drives] == [None] * 3
    assert [child.tag for child in drives[0]] == ["driver", "target", "readonly", "boot", "address"]
    assert "/evil" not in definition.xml
    assert definition.notes == (
        "cdrom sda: it is empty here, its medium stays with the primary",
        "cdrom sdb: it is empty here, its medium stays with the primary",
        "left out: cdrom evil",
        "left out: floppy fda",
    )


@pytest.mark.parametrize(("mode", "told"), [("host-passthrough", True), ("maximum", True), ("host-model", False)])
def test_a_processor_that_the_guest_sees_as_it_is_may_be_another_one_here(mode: str, told: bool) -> None:
    notes = built(domain(more=f"<cpu mode='{mode}'/>")).notes
    assert any("which may differ" in note for note in notes) == told
