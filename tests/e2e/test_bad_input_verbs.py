"""Verbs asked for what cannot be: each is refused in words, with a remedy and the exit code of its family."""

import pytest
from job_kit import NewBlank, disk_xml, enable, inside, points, qemu_img, refusal, relation, wait_cycles

from vmreplica.lab import Lab

pytestmark = pytest.mark.main_job


def test_an_unknown_vm_is_refused_with_the_names_that_come_close(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, start=False)
    misspelt = vm.name.replace("blank", "blakn")
    for words in ("enable --to b", "status", "points", "sync"):
        code, error = refusal(a, *words.split(), misspelt)
        assert (code, error["code"]) == (3, "vm-unknown"), words
        assert vm.name in error["hint"]
    for asked in (
        ("failover", misspelt, "--yes"),
        ("failover", misspelt, "--dry-run"),
        ("networks", misspelt, "--map=x=y"),
    ):
        code, error = refusal(b, *asked)
        assert (code, error["code"]) == (3, "replica-unknown"), asked
        assert "vmreplica status" in error["hint"]


def test_a_vm_that_is_not_protected_is_said_to_be_so(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    for words in (("status",), ("points",), ("sync",), ("pause",), ("resume",), ("disable", "--yes")):
        code, error = refusal(a, words[0], vm.name, *words[1:])
        assert (code, error["code"]) == (3, "not-protected"), words
        assert f"vmreplica enable {vm.name}" in error["hint"]


def test_an_unknown_peer_is_refused_with_the_known_ones(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    for words in (("enable", vm.name, "--to", "bb"), ("peer", "test", "bb"), ("peer", "remove", "bb", "--yes")):
        code, error = refusal(a, *words)
        assert (code, error["code"]) == (3, "peer-unknown"), words
        assert "b" in error["hint"].split("vmreplica")[0]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--every", "4s"), "interval-invalid"),
        (("--every", "25h"), "interval-invalid"),
        (("--every", "often"), "interval-invalid"),
        (("--keep", "0"), "keep-invalid"),
        (("--keep", "hourly=0,daily=0"), "keep-invalid"),
        (("--keep", "within=7d", "--every", "30s"), "keep-invalid"),
        (("--exclude-disk", "vdz"), "disk-unknown"),
        (("--exclude-disk", "../vda"), "request-invalid"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_and_nothing_is_changed(
    lab: Lab, new_blank: NewBlank, options: tuple[str, ...], code: str
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, start=False)
    exit_code, error = refusal(a, "enable", vm.name, "--to", "b", *options)
    assert (exit_code, error["code"]) == (2, code)
    assert refusal(a, "status", vm.name)[1]["code"] == "not-protected"
    assert not inside(b, b.layout.store / vm.uuid).exists()


def test_disks_that_cannot_be_replicated_are_named_with_a_remedy(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    shared = a.layout.images / "odd-vdb.raw"
    qemu_img("create", "-q", "-f", "raw", str(shared), "1M")
    disk = disk_xml("vdb", shared, kind="raw").replace("</disk>", "<shareable/></disk>")
    vm = new_blank(a, devices=disk)
    code, error = refusal(a, "enable", vm.name, "--to", "b")
    assert (code, error["code"]) == (4, "disk-not-eligible")
    assert "vdb" in error["message"]
    assert "share" in error["message"]
    assert "--exclude-disk vdb" in error["hint"]
    assert refusal(a, "status", vm.name)[1]["code"] == "not-protected"

    code, error = refusal(a, "enable", vm.name, "--to", "b", "--exclude-disk", "vdb", "--exclude-disk", "vda")
    assert (code, error["code"]) == (4, "no-eligible-disks")
    assert not inside(b, b.layout.store / vm.uuid).exists()
    assert enable(a, vm.name, "--exclude-disk", "vdb", every="24h")["result"]["outcome"] == "published", (
        "the remedy helps"
    )


def test_a_vm_without_disks_is_refused(lab: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(lab.host("a"), disks=())
    code, error = refusal(lab.host("a"), "enable", vm.name, "--to", "b")
    assert (code, error["code"]) == (4, "no-eligible-disks")


def test_a_stopped_vm_whose_disk_another_program_writes_to_waits_until_it_is_free(
    lab: Lab, new_blank: NewBlank
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, start=False)
    image, pid = str(vm.images["vda"]), a.layout.images / "writer.pid"
    a.exec(["qemu-nbd", "--persistent", "--fork", "-f", "qcow2", f"--pid-file={pid}", "-k", f"{image}.sock", image])
    code, error = refusal(a, "enable", vm.name, "--to", "b")
    assert (code, error["code"]) == (5, "image-in-use")
    assert image in error["message"]
    code, error = refusal(b, "failover", vm.name, "--yes")
    assert (code, error["code"]) == (5, "state-forbids"), "there is no point yet"
    a.exec(["kill", pid.read_text().strip()])
    assert wait_cycles(a, vm.name, 1)[0]["kind"] == "initial", "it goes on by itself"
    assert len(points(b, vm.name)) >= 1
    assert relation(b, vm.name)["state"] == "replicating"
