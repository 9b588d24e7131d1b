"""Single points of a replica: pinned, mounted, exported; and what becomes of that when the agent dies."""

from pathlib import Path

import pytest
from job_kit import Blank, NewBlank, enable, images, inside, points, qemu_img, refusal, relation, same_content

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.points


def test_a_point_is_pinned_read_and_exported_and_the_rules_get_it_back(
    lab: Lab, new_blank: NewBlank, tmp_path: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, disks=("vda", "vdb"))
    old = _old_point(a, vm)
    out = b.layout.dir / "taken"
    inside(b, out).mkdir()

    before = [out_of(image, tmp_path / image.name) for image in images(b, vm.uuid, old)]

    # What the rules say is told on both sides, and single points are the replica's.
    for host in (a, b):
        told = host.ask("points", vm.name, "--plan")
        assert told["keep"]["last"] == 1
        assert told["verdicts"][old]["reasons"][0] == "newest"
    assert refusal(a, "points", "pin", vm.name, old)[1]["code"] == "points-elsewhere"
    b.ask("points", "pin", vm.name, old, "--reason", "before the upgrade")

    mount = b.ask("points", "mount", vm.name, old, "--for", "1h")
    exported = b.ask("points", "export", vm.name, old, "--to", str(out), "--format", "vmdk", "--check", timeout=300)
    assert exported["exported"]["checked"]
    for disk, content in zip(exported["exported"]["disks"], before, strict=True):
        assert same_content(inside(b, Path(disk["path"])), content)
    assert refusal(b, "points", "export", vm.name, old, "--to", str(out), "--format", "vmdk")[1]["code"] == (
        "export-file-exists"
    )

    # Newer points come; the old one stays as it was while it is read, and the agent's end ends the reading.
    _change(a, vm, 3)
    _change(a, vm, 4)
    for disk, content in zip(mount["disks"], before, strict=True):
        b.exec(["nbdcopy", disk["uri"], str(out / "read.img")])
        assert inside(b, out / "read.img").read_bytes() == content.read_bytes()
    assert [held["point"] for held in relation(b, vm.name)["mounts"]] == [old]
    assert refusal(b, "disable", vm.name, "--delete-copy", "--yes")[1]["code"] == "points-in-use"
    b.kill_agent()
    assert _serves(b, mount["disks"][0]["uri"]), "the server is a process of its own"
    b.start_agent()
    assert not _serves(b, mount["disks"][0]["uri"])
    assert relation(b, vm.name)["mounts"] == []

    # The pin outlives that, and goes when a person says so.
    _change(a, vm, 5)
    shown = b.ask("points", vm.name, "--plan")
    assert shown["verdicts"][old]["reasons"] == ["pinned: before the upgrade"]
    assert shown["points"][-1]["point"] == old
    assert shown["merges"]["chain_depth"] > 1
    b.ask("points", "unpin", vm.name, old)
    assert until(lambda: len(_kept(b, vm)) == 1, 60), b.ask("points", vm.name, "--plan")


def out_of(image: Path, raw: Path) -> Path:
    """Copy what an image reads now."""
    qemu_img("convert", "-U", "-O", "raw", str(image), str(raw))
    return raw


def _old_point(a: Host, vm: Blank) -> str:
    vm.write("vda", "1M", "64k", 1)
    vm.write("vdb", "1M", "64k", 2)
    point: str = enable(a, vm.name, "--keep", "1", every="24h")["result"]["point"]
    return point


def _change(a: Host, vm: Blank, pattern: int) -> None:
    vm.write("vda", "1M", "128k", pattern)
    a.ask("sync", vm.name)


def _kept(b: Host, vm: Blank) -> list[str]:
    return [point["point"] for point in points(b, vm.name)]


def _serves(b: Host, uri: str) -> bool:
    return b.exec(["nbdinfo", "--size", uri], check=False).returncode == 0
