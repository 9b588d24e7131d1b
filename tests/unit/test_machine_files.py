"""UEFI variables and TPM state: read on the primary, bounded and verified on the way, stored, placed as copies."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard
from adoption_kit import adoption, old_disk
from point_kit import VM, make_opening
from pydantic import ValidationError
from repository_kit import Primary, new_replica, open_repository

from vmreplica.failover.machine import foresee_machine, parts_of, place_machine, remarks
from vmreplica.fsio.packed import pack_file, packed_bytes, unpack
from vmreplica.hypervisor.firmware import Firmware, fitting, installed_firmware
from vmreplica.hypervisor.machine import MachineStore
from vmreplica.model.errors import Corrupt, Internal
from vmreplica.model.machine import MAX_PACKED, MachineFile
from vmreplica.model.units import MiB

pytestmark = pytest.mark.failover

COPY = "22222222-2222-3333-4444-555555555555"


def definition(nvram: str = "", tpm: str = "") -> str:
    return f"<domain><os>{nvram}</os><devices>{tpm}</devices></domain>"


def emulated(version: str = "2.0", more: str = "") -> str:
    return f"<tpm model='tpm-crb'><backend type='emulator' version='{version}'>{more}</backend></tpm>"


@pytest.fixture
def store(tmp_path: Path) -> MachineStore:
    (tmp_path / "libvirt").mkdir()
    return MachineStore(tmp_path / "libvirt" / "nvram", tmp_path / "libvirt" / "swtpm")


def test_variables_and_tpm_are_read_as_the_definition_names_them(store: MachineStore, tmp_path: Path) -> None:
    variables, tpm = tmp_path / "web_VARS.fd", tmp_path / "libvirt" / "swtpm" / VM / "tpm2"
    variables.write_bytes(b"boot order" * 1000)
    tpm.mkdir(parents=True)
    for name in ("tpm2-00.permall", ".lock", "TMP2-00.permall"):
        (tpm / name).write_bytes(name.encode())
    (tpm / "link").symlink_to("/etc/hostname")
    machine = store.read(VM, definition(f"<nvram template='/t'>{variables}</nvram>", emulated()))
    assert machine.remarks == ()
    assert {file.name: unpack(file, packed_bytes(file)) for file in machine.files} == {
        "nvram": b"boot order" * 1000,
        "tpm2/tpm2-00.permall": b"tpm2-00.permall",
    }, "neither swtpm's lock nor what it is just writing, and no link"


def test_a_machine_that_never_ran_or_has_neither_has_no_files(store: MachineStore, tmp_path: Path) -> None:
    for xml in (definition(), definition(f"<nvram>{tmp_path}/none.fd</nvram>", emulated("1.2"))):
        machine = store.read(VM, xml)
        assert (machine.files, machine.remarks) == ((), ())


@pytest.mark.parametrize(
    ("nvram", "tpm", "remark"),
    [
        ("<nvram type='network'><source protocol='iscsi'/></nvram>", "", "not in a file of this host"),
        ("<nvram format='qcow2'>/x</nvram>", "", "qcow2 format"),
        ("<nvram>/dev/null</nvram>", "", "no regular file"),
        ("<nvram>/proc/self/mem/x</nvram>", "", "cannot be read"),
        ("", emulated(more="<encryption secret='s'/>"), "encrypted with a secret"),
        ("", emulated(more="<source type='file' path='/x'/>"), "not in a directory"),
        ("", "<tpm><backend type='passthrough'/></tpm>", "of the type passthrough"),
    ],
)
def test_what_cannot_travel_is_told_and_in_nobodys_way(store: MachineStore, nvram: str, tpm: str, remark: str) -> None:
    machine = store.read(VM, definition(nvram, tpm))
    assert machine.files == ()
    assert [remark in told for told in machine.remarks] == [True]


def test_a_file_that_is_too_large_stays_behind(store: MachineStore, tmp_path: Path) -> None:
    large = tmp_path / "large.fd"
    with large.open("wb") as file:
        file.truncate(64 * MiB + 1)
    assert "64" in store.read(VM, definition(f"<nvram>{large}</nvram>")).remarks[0]
    large.write_bytes(os.urandom(MAX_PACKED + 1000))
    machine = store.read(VM, definition(f"<nvram>{large}</nvram>"))
    assert machine.files == ()
    assert "when it is packed" in machine.remarks[0]
    half = os.urandom(MAX_PACKED * 2 // 3)
    large.write_bytes(half)
    tpm = tmp_path / "libvirt" / "swtpm" / VM / "tpm2"
    tpm.mkdir(parents=True)
    (tpm / "tpm2-00.permall").write_bytes(half)
    machine = store.read(VM, definition(f"<nvram>{large}</nvram>", emulated()))
    assert machine.files == ()
    assert "too large" in machine.remarks[0]


def hostile(**changes: Any) -> dict[str, Any]:
    return pack_file("nvram", b"x" * 1000).model_dump() | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../etc/passwd"}, {"name": "tpm2/../x"}, {"name": "tpm2/.lock"}, {"name": "tpm2/a/b"},
        {"name": "nvram\n"}, {"name": "tpm3/x"}, {"size": 65 * MiB}, {"size": -1}, {"sha256": "z"},
        {"content": "x" * (3 * MiB)},
    ],
)  # fmt: skip
def test_names_and_sizes_of_a_peer_are_bounded(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_opening("20260102T000000Z-00000001", machine=[hostile(**changes)])


def test_a_file_named_twice_or_too_much_altogether_is_refused() -> None:
    part = "A" * (MAX_PACKED // 2)
    for files in ([hostile(), hostile()], [hostile(content=part, name=f"tpm2/{n}") for n in range(4)]):
        with pytest.raises(ValidationError):
            make_opening("20260102T000000Z-00000001", machine=files)


@pytest.mark.parametrize(
    "changes",
    [
        {"content": "!!!"}, {"content": base64.b64encode(b"no zstd at all").decode()}, {"size": 999}, {"size": 1001},
        {"sha256": "0" * 64},
        {"content": base64.b64encode(zstandard.compress(bytes(256 * MiB))).decode()},
    ],
)  # fmt: skip
def test_content_that_is_not_what_it_says_is_refused_within_bounds(changes: dict[str, Any]) -> None:
    with pytest.raises(Corrupt) as caught:
        packed_bytes(MachineFile(**hostile(**changes)))
    assert caught.value.code == "machine-file-damaged"
    assert caught.value.hint


def test_a_point_keeps_them_and_a_copy_of_them_is_placed(store: MachineStore, tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path / "store"), Primary()
    files = {"nvram": os.urandom(5000), "tpm2/tpm2-00.permall": b"sealed"}
    opening = primary.opening().model_copy(
        update={
            "machine": tuple(pack_file(name, content) for name, content in files.items()),
            "machine_remarks": ("nvram: \x1b[2J strange",),
        }
    )
    point = primary.send(replica, {"vda": {0: b"\1" * 65536}}, opening=opening).point
    replica = open_repository(tmp_path / "store").replica(VM)
    assert foresee_machine(replica, point, COPY, store)["tpm"] == "2.0"
    parts = place_machine(replica, point, COPY, store)
    assert parts["nvram_size"] == 5000
    assert parts["nvram"] is not None
    assert parts["nvram"].read_bytes() == files["nvram"]
    swtpm = tmp_path / "libvirt" / "swtpm" / COPY
    assert [path.read_bytes() for path in swtpm.rglob("*.permall")] == [b"sealed"]
    parts["nvram"].write_bytes(b"the firmware writes")
    place_machine(replica, point, COPY, store)
    assert parts["nvram"].read_bytes() == files["nvram"], "the point's own file was not written"
    assert "\x1b" not in remarks(replica, point)[0]
    store.remove(COPY)
    assert not parts["nvram"].exists()
    assert not swtpm.exists()


def test_a_damaged_file_in_the_store_is_found_before_it_is_used(store: MachineStore, tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path / "store"), Primary()
    opening = primary.opening().model_copy(update={"machine": (pack_file("nvram", b"good" * 100),)})
    point = primary.send(replica, {"vda": {}}, opening=opening).point
    path = replica.dir / "points" / point / "nvram.zst"
    path.write_bytes(zstandard.compress(b"evil" * 100))
    with pytest.raises(Corrupt, match="UEFI variables"):
        place_machine(replica, point, COPY, store)
    path.unlink()
    with pytest.raises(Corrupt, match="missing"):
        place_machine(replica, point, COPY, store)


def test_a_peer_whose_file_is_not_what_it_says_publishes_nothing(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path / "store"), Primary()
    bad = pack_file("nvram", b"good").model_copy(update={"sha256": "0" * 64})
    with pytest.raises(Corrupt):
        primary.send(replica, {"vda": {}}, opening=primary.opening().model_copy(update={"machine": (bad,)}))
    assert replica.points() == []


def test_firmware_is_chosen_by_the_size_of_the_variables(tmp_path: Path) -> None:
    code, template = tmp_path / "CODE.fd", tmp_path / "VARS.fd"
    code.write_bytes(b"c")
    template.write_bytes(bytes(4096))
    good = {
        "interface-types": ["uefi"], "features": ["secure-boot"],
        "mapping": {
            "device": "flash", "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": str(template), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
    }  # fmt: skip
    (tmp_path / "50-good.json").write_text(json.dumps(good))
    (tmp_path / "10-torn.json").write_text(json.dumps(good)[:50])
    (tmp_path / "20-list.json").write_text("[]")
    (tmp_path / "30-bios.json").write_text(json.dumps(good | {"interface-types": ["bios"]}))
    found = installed_firmware((tmp_path,))
    wanted = Firmware(str(code), str(template), 4096, secure=True, arch="x86_64", machines=("pc-q35-*",))
    assert found[0] == wanted
    for machine in ("q35", "pc-q35-7.2"):
        assert fitting(found, size=4096, secure=True, machine=machine, arch="x86_64") == wanted
    assert fitting(found, size=4097, secure=True, machine="q35", arch="x86_64") is None
    assert fitting(found, size=4096, secure=False, machine="q35", arch="x86_64") is None
    assert fitting(found, size=4096, secure=True, machine="pc", arch="x86_64") is None


def test_a_machine_without_files_asks_for_nothing() -> None:
    assert parts_of(VM, ()) == {"nvram": None, "nvram_size": 0, "firmwares": (), "tpm": None}


def test_what_the_old_machine_kept_besides_its_disks_is_in_the_point_of_its_adoption(
    store: MachineStore, tmp_path: Path
) -> None:
    old = old_disk(tmp_path, "raw", {})
    wanted = adoption({"vda": old}, machine=(pack_file("nvram", b"as it was"),), machine_remarks=("tpm: gone",))
    replica = open_repository(tmp_path / "store").adopt(wanted)
    place_machine(replica, wanted.point, COPY, store)
    assert store.nvram(COPY).read_bytes() == b"as it was"
    assert remarks(replica, wanted.point) == ("not in the point: tpm: gone",)


def test_files_that_cannot_be_removed_are_named(store: MachineStore) -> None:
    store.nvram(VM).mkdir(parents=True)
    with pytest.raises(Internal, match=str(store.nvram(VM))) as caught:
        store.remove(VM)
    assert caught.value.code == "machine-files-stay"
