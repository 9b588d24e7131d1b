"""Parts of a commit: what libvirt says of a disk's images, what goes from the files, and the plan."""

from pathlib import Path

import pytest

from vmreplica.hypervisor.blockjobs import parse_live_disk, with_image
from vmreplica.model.errors import NotFound
from vmreplica.repository.committing import remove_folded
from vmreplica.repository.layout import Layout

pytestmark = pytest.mark.failover

_CHAIN = """
<backingStore type='file' index='8'><format type='qcow2'/><source file='{dir}/run/../points/P2/vda.qcow2'/>
 <backingStore type='file' index='9'><format type='qcow2'/>
  <source file='{dir}/run/../points/P2/../P1/vda.qcow2'/>{end}</backingStore></backingStore>
"""
_DOMAIN = """
<domain><name>web</name><devices>
 <disk type='file' device='cdrom'><target dev='sda'/></disk>
 <disk type='file' device='disk'><source file='{dir}/run/vda.qcow2' index='1'/>{chain}{mirror}<target dev='vda'/></disk>
</devices></domain>
"""
_MIRROR = "<mirror type='file' job='{job}' {ready}><source file='{dir}/run/../points/P2/../P1/vda.qcow2'/></mirror>"


def _domain(directory: Path, mirror: str = "") -> str:
    for name in ("run", "points/P1", "points/P2"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    chain = _CHAIN.format(dir=directory, end="<backingStore/>")
    return _DOMAIN.format(dir=directory, chain=chain, mirror=mirror.format(dir=directory))


def test_images_are_known_by_their_place_whatever_way_leads_there(tmp_path: Path) -> None:
    disk = parse_live_disk(_domain(tmp_path), "vda", None)
    assert disk.top == tmp_path / "run/vda.qcow2"
    assert disk.below == {
        tmp_path / "points/P2/vda.qcow2": "vda[8]",
        tmp_path / "points/P1/vda.qcow2": "vda[9]",
    }
    assert (disk.into, disk.ready, disk.foreign) == (None, False, False)
    with pytest.raises(NotFound, match="no disk vdb"):
        parse_live_disk(_domain(tmp_path), "vdb", None)


@pytest.mark.parametrize(
    ("job", "ready", "ours"), [("active-commit", "ready='yes'", True), ("active-commit", "", True), ("copy", "", False)]
)
def test_a_job_is_ours_only_if_it_folds_below_the_running_vm(tmp_path: Path, job: str, ready: str, ours: bool) -> None:
    mirror = _MIRROR.replace("{job}", job).replace("{ready}", ready)
    disk = parse_live_disk(_domain(tmp_path, mirror), "vda", {"type": 4, "cur": 3, "end": 7})
    assert disk.foreign is not ours
    assert disk.into == (tmp_path / "points/P1/vda.qcow2" if ours else None)
    assert disk.ready is bool(ready)
    assert (disk.done, disk.total) == (3, 7)


def test_a_definition_gets_another_image_and_forgets_what_was_below_the_old_one(tmp_path: Path) -> None:
    image = tmp_path / "points/P1/vda.qcow2"
    changed = with_image(_domain(tmp_path), "vda", image)
    assert changed is not None
    assert str(image) in changed
    assert "backingStore" not in changed
    assert "sda" in changed
    assert with_image(changed, "vda", image) is None, "nothing is left to change"


def test_what_was_folded_goes_and_may_go_again(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for name in ("run", "points/P1", "points/P2", "holds"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("run/vdb.qcow2", "points/P1/vda.qcow2", "points/P1/manifest.json", "points/P2/vda.qcow2", "fold.json"):
        (tmp_path / name).write_bytes(b"x" * 5000)
    assert remove_folded(layout, {"vda": "points/P1/vda.qcow2"}) >= 3 * 5000
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "points/P1/vda.qcow2"]
    assert (tmp_path / "points/P2").is_dir(), "a running QEMU knows its image by a path through it"
    assert remove_folded(layout, {"vda": "points/P1/vda.qcow2"}) == 0
