"""The whole machine fails over: UEFI variables and the TPM's state are those of the point, in copies."""

import json
import struct
import uuid
from pathlib import Path
from typing import Final

import pytest
from job_kit import Document, NewBlank, NewGuest, check_point, enable, inside, relation, switch_off, wait_cycles

from vmreplica.lab import Host, Lab, check_records
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.failover

#: Behind the headers of the firmware volume and of the variable store.
_FIRST_VARIABLE: Final = 0x48 + 0x1C
_START: Final = b"\xaa\x55"
_HEADER: Final = struct.Struct("<2sBBIQ16sIII16s")
_VENDOR: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
TPM: Final = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"


def test_variables_and_tpm_state_of_the_chosen_point_come_to_the_replica(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, efi=True, devices=TPM)
    nvram, tpm = _nvram(a, vm.name), _tpm(a, vm.uuid)
    first = nvram.read_bytes()
    older = enable(a, vm.name, "--keep", "5", every="24h")["result"]["point"]
    nvram.write_bytes(_with_variable(first, "Lab", b"boot from vdb now"))
    sealed = {path.name: path.read_bytes() for path in tpm.iterdir() if not path.name.startswith(".")}
    assert sealed
    a.ask("sync", vm.name)

    tested = b.ask("failover", vm.name, "--test", "--point", older)
    copy = tested["test"]
    assert b"boot from vdb now" not in _nvram(b, copy["name"]).read_bytes(), "that point is older"
    assert "TPM" not in " ".join(tested["plan"]["notes"])
    b.ask("failover", vm.name, "--test", "--cancel")
    assert not _tpm(b, copy["vm"]).exists()

    switch_off(vm)
    plan = b.ask("failover", vm.name, "--dry-run")
    done = b.ask("failover", vm.name, "--yes")
    assert plan["notes"] == done["plan"]["notes"]
    assert b"boot from vdb now" in _nvram(b, vm.name).read_bytes()
    assert {path.name for path in _tpm(b, vm.uuid).iterdir()} >= set(sealed)
    b.ask("failover", vm.name, "--cancel", "--yes")
    assert not _tpm(b, vm.uuid).exists()
    assert not list(inside(b, Path("/var/lib/libvirt/qemu/nvram")).glob(f"*{vm.uuid}*")), "no trace is left"


@pytest.mark.slow
def test_a_uefi_guest_with_two_disks_goes_on_from_its_own_variables(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2, firmware="efi", network="lan")
    guest.wait_for("UEFI variables are new")
    guest.wait_record(5)
    enable(a, guest.name)
    replicated = guest.wait_record(guest.last_seen() or 0)
    wait_cycles(a, guest.name, 2)
    lab.crash("a")
    b.ask("failover", guest.name, "--yes")
    said = b.watch_console(guest.name, r"boot complete, last record (\d+) found")
    assert "UEFI variables are ours" in said
    assert b.wait_domain_alive(guest.name) >= replicated
    b.virsh("destroy", guest.name)
    report = check_records(b.disk_paths(guest.name))
    assert report.ok, report


@pytest.mark.slow
def test_a_uefi_guest_is_moved_there_and_back_with_its_variables_and_its_last_record(
    lab: Lab, new_guest: NewGuest
) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2, firmware="efi", agent=True)
    guest.wait_for("UEFI variables are new")
    guest.wait_record(5)
    enable(a, guest.name)
    vm = guest.uuid
    last = 0
    for here, there in ((a, b), (b, a)):
        assert until(lambda here=here: _agent_answers(here, guest.name), 120)  # type: ignore[misc]
        moved = here.ask("failover", guest.name, "--planned", "--yes", timeout=300)["planned"]
        assert moved["shutdown"] == "agent"
        last = check_point(here, vm, moved["plan"]["point"]).last
        said = there.watch_console(guest.name, r"boot complete, last record (\d+) found")
        assert "UEFI variables are ours" in said
        assert there.wait_domain_alive(guest.name) > last
        assert until(lambda there=there: relation(there, guest.name)["stands_on"] == 0, 120)  # type: ignore[misc]
    a.virsh("destroy", guest.name)
    report = check_records(a.disk_paths(guest.name))
    assert report.ok, report
    assert report.last > last


@pytest.mark.slow
def test_the_guest_agent_sets_addresses_after_a_failover_and_in_a_test(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, network="lan", agent=True, idle=True)
    guest.wait_booted()
    enable(a, guest.name, every="24h")
    plan = "0=192.0.2.7/24,gateway=192.0.2.1,dns=192.0.2.2"
    shown = b.ask("networks", guest.name, "--ip", plan, "--map", "lan=isolated")
    assert [(nic["source"], nic["place"]) for nic in shown["interfaces"]] == [("lan", "isolated")]
    test = b.ask("failover", guest.name, "--test")["test"]["name"]
    assert until(lambda: _addresses(b, test) == {"192.0.2.7"}, 120)
    b.ask("failover", guest.name, "--test", "--cancel")
    guest.stop()
    b.ask("failover", guest.name, "--yes")
    assert until(lambda: _addresses(b, guest.name) == {"192.0.2.7"}, 120)
    assert until(lambda: _addressing(b, guest.uuid)["state"] == "done", 30), _addressing(b, guest.uuid)


def test_a_guest_whose_agent_never_answers_runs_all_the_same_and_status_says_so(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, every="24h")
    b.ask("networks", vm.name, "--ip", "0=192.0.2.7/24")
    vm.stop()
    assert b.ask("failover", vm.name, "--yes")["started"]
    assert _addressing(b, vm.uuid)["state"] == "waiting"
    b.stop_agent()
    record = _record(b, vm.uuid)
    document = json.loads(record.read_text())
    document["addressing"]["since"] = "2026-01-01T00:00:00Z"
    record.write_text(json.dumps(document))
    b.start_agent()
    assert until(lambda: _addressing(b, vm.uuid)["state"] == "failed", 60), "the wish outlives the agent"
    reasons = relation(b, vm.name)["health"]["reasons"]
    assert any("has not got the addresses" in reason["text"] for reason in reasons), reasons


def _record(host: Host, vm: str) -> Path:
    return inside(host, host.layout.store / vm / "replica.json")


def _addressing(host: Host, vm: str) -> Document:
    record: Document = json.loads(_record(host, vm).read_text())["addressing"]
    return record


def _addresses(host: Host, name: str) -> set[str]:
    asked = host.virsh("qemu-agent-command", name, '{"execute":"guest-network-get-interfaces"}', check=False)
    cards = json.loads(asked.stdout)["return"] if asked.returncode == 0 else []
    known = [entry for card in cards if card["name"] != "lo" for entry in card.get("ip-addresses", ())]
    return {entry["ip-address"] for entry in known if entry["ip-address-type"] == "ipv4"}


def _with_variable(store: bytes, name: str, value: bytes) -> bytes:
    """Add a UEFI variable behind the last one of a store, as the firmware does, which then keeps it."""
    place = _FIRST_VARIABLE
    while store[place : place + 2] == _START:
        place += -(-(_HEADER.size + sum(_HEADER.unpack_from(store, place)[7:9])) // 4) * 4
    encoded = name.encode("utf-16-le") + b"\0\0"
    header = _HEADER.pack(_START, 0x3F, 0, 7, 0, bytes(16), 0, len(encoded), len(value), _VENDOR.bytes_le)
    variable = header + encoded + value
    assert store[place : place + len(variable)] == b"\xff" * len(variable), "nothing is there"
    return store[:place] + variable + store[place + len(variable) :]


def _agent_answers(host: Host, name: str) -> bool:
    return host.virsh("qemu-agent-command", name, '{"execute": "guest-ping"}', check=False).returncode == 0


def _nvram(host: Host, name: str) -> Path:
    xml = host.virsh("dumpxml", name).stdout
    return inside(host, Path(xml.split("</nvram>")[0].rpartition(">")[2]))


def _tpm(host: Host, vm: str) -> Path:
    return inside(host, Path(f"/var/lib/libvirt/swtpm/{vm}/tpm2"))
