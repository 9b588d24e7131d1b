"""Old disks of a VM become the base of its replica in place: of every shape, and no crash in between costs anything."""

from pathlib import Path

import numpy as np
import pytest
from adoption_kit import (
    POINT,
    SHAPES,
    SIZE,
    adopted,
    adoption,
    new_primary,
    old_disk,
    qemu_img,
    read_old,
    some_content,
)
from base_kit import fill
from point_kit import VM
from pydantic import ValidationError
from repository_kit import OWNER, STRANGER, Killed, Primary, check_all, kill_at, noise, offer, open_repository

from vmreplica.fingerprint import blocks_of, hash_blocks
from vmreplica.model.errors import Conflict
from vmreplica.model.states import Event, State
from vmreplica.model.units import CLUSTER
from vmreplica.receive.reading import hash_image
from vmreplica.repository import Adoption, Repository

pytestmark = pytest.mark.failover


@pytest.mark.parametrize("shape", SHAPES)
def test_an_old_disk_is_the_base_where_it_is_and_points_are_folded_into_it_for_ever(tmp_path: Path, shape: str) -> None:
    content = some_content()
    old = old_disk(tmp_path, shape, content)
    others = {path: path.read_bytes() for path in tmp_path.glob("*-template.qcow2")}
    store = tmp_path / "store"
    replica, primary = adopted(store, {"vda": old}), new_primary({"vda": content})
    summary = replica.points()[0]
    assert (summary.point, summary.kind, summary.bootable) == (POINT, "final", True)
    assert check_all(replica, primary) == [POINT]
    for turn in range(3):
        fill(replica, primary, 1, seed=turn)
        replica.apply_retention()
        replica.verify_devices()
        listed = check_all(replica, primary)
    assert listed == sorted(primary.expected)[-2:]
    assert read_old(old) == primary.expected[listed[0]]["vda"]
    if shape != "raw":
        qemu_img("check", str(old))
    assert {path: path.read_bytes() for path in others} == others, "what the old disk stands on is never written"
    again = open_repository(store).replica(VM)
    assert check_all(again, primary) == listed
    assert not again.position().complaints
    assert (
        sum(image.stat().st_blocks * 512 for image in (store / VM / "points" / listed[0]).glob("*.qcow2")) < 8 * CLUSTER
    )
    repository = open_repository(store)
    repository.remove(VM)
    assert read_old(old) == primary.expected[listed[0]]["vda"], "an old disk outside of the store is never removed"


def test_what_was_never_sent_is_a_recovery_point_until_it_is_too_old(tmp_path: Path) -> None:
    content = some_content()
    old = old_disk(tmp_path, "qcow2", content)
    replica = open_repository(tmp_path / "store").adopt(adoption({"vda": old}, kind="adopted", checkpoint=None))
    assert [(point.kind, point.bootable, point.checkpoint) for point in replica.points()] == [("adopted", True, None)]
    assert replica.definition(POINT) == "<domain/>"
    assert (replica.dir / "original.xml").read_text() == "<domain/>"


def test_no_point_is_taken_before_the_vm_has_no_life_of_its_own_here_any_more(tmp_path: Path) -> None:
    old = old_disk(tmp_path, "qcow2", some_content())
    repository = open_repository(tmp_path / "store")
    replica = repository.adopt(adoption({"vda": old}))
    assert replica.record.state is State.REVERSING
    qemu_img("bitmap", "--add", str(old), "late")  # what is done to the images until then is ours
    assert repository.adopt(adoption({"vda": old})).record.state is State.REVERSING
    replica = repository.replica(VM)
    replica.finish_adoption()
    replica.finish_adoption()
    assert (replica.record.state, replica.record.adoption) == (State.REPLICATING, None)
    replica.verify_devices()
    assert repository.adopt(adoption({"vda": old})) is replica, "asked again, it is done"
    with pytest.raises(Conflict, match="replicating"):
        repository.adopt(adoption({"vda": old}, epoch=2, owner=STRANGER))


def test_the_same_swap_under_another_points_name_is_the_one_that_was_begun(tmp_path: Path) -> None:
    old = old_disk(tmp_path, "qcow2", some_content())
    repository = open_repository(tmp_path / "store")
    repository.adopt(adoption({"vda": old}))
    other = POINT[:-1] + "e"
    assert [point.point for point in repository.adopt(adoption({"vda": old}, point=other)).points()] == [POINT]


ADOPT_STEPS = [
    "shim vdb",
    "publish",
    "published",
    *(pytest.param(step, marks=pytest.mark.slow) for step in ("drop", "shim vda", "manifest")),
]


@pytest.mark.parametrize("step", ADOPT_STEPS)
def test_a_crash_while_old_disks_are_adopted_is_made_good_at_the_next_start(tmp_path: Path, step: str) -> None:
    content = {"vda": some_content(1), "vdb": some_content(2)}
    disks = {target: old_disk(tmp_path, "qcow2", clusters, name=target) for target, clusters in content.items()}
    before = {path: path.read_bytes() for path in disks.values()}
    repository = open_repository(tmp_path / "store")
    repository.before_adopt_step = kill_at(step)
    with pytest.raises(Killed):
        repository.adopt(adoption(disks))
    again = open_repository(tmp_path / "store")
    assert not again.damaged
    replica = again.replica(VM)
    assert check_all(replica, new_primary(content)) == [POINT]
    assert again.adopt(adoption(disks)).record.state is State.REVERSING
    again.replica(VM).finish_adoption()
    assert {path: path.read_bytes() for path in before} == before, "the old disks are as they were"


def failed_over(store: Path) -> tuple[Repository, Path, dict[int, bytes]]:
    """A VM that ran on here after a failover, on an image in the store that stands on no point any more."""
    repository, primary = open_repository(store), Primary({"vda": SIZE})
    replica = repository.create(VM, STRANGER, offer())
    fill(replica, primary, 2)
    replica.move(Event.FAIL_OVER)
    replica.move(Event.STARTED)
    replica.hold(str(primary.latest), "failover", "it runs")
    content = some_content(9)
    (store / VM / "run").mkdir()
    image = old_disk(store / VM / "run", "qcow2", content, name="vda")
    return repository, image, content


STORE_STEPS = [
    None,
    "drop",
    "publish",
    *(pytest.param(step, marks=pytest.mark.slow) for step in ("move vda", "shim vda", "published")),
]


@pytest.mark.parametrize("step", STORE_STEPS)
def test_a_vm_that_ran_in_the_store_leaves_its_disk_there_as_the_base(tmp_path: Path, step: str | None) -> None:
    repository, image, content = failed_over(tmp_path)
    wish = adoption({"vda": image}, epoch=2)
    if step is not None:
        repository.before_adopt_step = kill_at(step)
        with pytest.raises(Killed):
            repository.adopt(wish)
        repository = open_repository(tmp_path)
        assert not repository.damaged
    replica = repository.adopt(wish)
    replica.finish_adoption()
    primary = new_primary({"vda": content})
    assert check_all(replica, primary) == [POINT]
    assert replica.record.owner == OWNER
    assert not (tmp_path / VM / "run").exists()
    fill(replica, primary, 2)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    moved = tmp_path / "moved" / VM
    moved.parent.mkdir()
    (tmp_path / VM).rename(moved)
    assert check_all(open_repository(moved.parent).replica(VM), primary) == sorted(primary.expected)[-2:]
    open_repository(moved.parent).replica(VM).verify_devices()


def test_a_disk_that_stands_on_recovery_points_has_to_be_committed_first(tmp_path: Path) -> None:
    repository, image, _content = failed_over(tmp_path)
    point = repository.replica(VM).points()[0].point
    layer = image.with_name("layer.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", f"../points/{point}/vda.qcow2", str(layer))
    with pytest.raises(Conflict) as caught:
        repository.adopt(adoption({"vda": layer}, epoch=2))
    assert (caught.value.code, caught.value.hint) == ("commit-first", "vmreplica commit web; then try again")
    assert repository.replica(VM).record.state is State.FAILED_OVER


def test_the_disk_in_the_store_goes_when_no_point_stands_on_it_any_more(tmp_path: Path) -> None:
    repository, image, content = failed_over(tmp_path)
    replica = repository.adopt(adoption({"vda": image}, epoch=2))
    replica.finish_adoption()
    primary = new_primary({"vda": content})
    primary.send(replica, {"vda": {0: noise(7)}}, whole=True)
    assert (tmp_path / VM / "base" / "vda.qcow2").exists()
    fill(replica, primary, 2)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert not (tmp_path / VM / "base" / "vda.qcow2").exists()


def test_the_new_primary_gets_fingerprints_of_an_adopted_point(tmp_path: Path) -> None:
    content = some_content()
    old = old_disk(tmp_path, "qcow2 over another", content)
    replica = adopted(tmp_path / "store", {"vda": old})
    blocks = blocks_of(SIZE)
    found = hash_image(replica.image(POINT, "vda"), size=SIZE, key=7, first_block=0, blocks=blocks)
    whole = new_primary({"vda": content}).expected[POINT]["vda"]
    assert np.array_equal(found, hash_blocks(memoryview(bytearray(whole)), 7))


def test_a_disk_of_another_size_or_that_cannot_be_read_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    old = old_disk(tmp_path, "qcow2", some_content(), size=SIZE)
    repository = open_repository(tmp_path / "store")
    with pytest.raises(Conflict, match="has 2622976 bytes") as caught:
        repository.adopt(adoption({"vda": old}, size=SIZE + 512))
    assert caught.value.code == "disk-not-adoptable"
    assert not repository.replicas()
    assert not list((tmp_path / "store").iterdir())
    wish = adoption({"vda": old}).model_dump()
    (disk,) = wish["disks"]
    for path in ("relative.qcow2", "/images/\n.qcow2", "/", "/" + "x" * 1001, "/" + "\u00e4" * 600):
        with pytest.raises(ValidationError):
            Adoption.model_validate(wish | {"disks": [disk | {"path": path}]})
