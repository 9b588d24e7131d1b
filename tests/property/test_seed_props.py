"""Seeding from existing copies: how it is asked for, and what the primary does meanwhile."""

import datetime as dt
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.agent.decide import WAITS_FOR_SEED, Capture, CycleFacts, DiskFacts, SeedFailed, Wait, decide
from vmreplica.agent.protect import seed_disks
from vmreplica.failover.plan import plan_unplanned
from vmreplica.model.errors import BadRequest, Conflict, NotFound, Problem
from vmreplica.model.point import DiskSpec, PointSummary, Position, Seeding
from vmreplica.model.seed import ExistingDisk, ExistingSeed, NetworkSeed, SeedFormat, parse_seed
from vmreplica.model.states import State
from vmreplica.repository import ReplicaRecord

pytestmark = pytest.mark.seeding

VM = "11111111-2222-3333-4444-555555555555"
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SEED = "20260101T000000Z-00000001"
POINT = "20260101T000500Z-00000002"
PROBLEM = Problem(code="seed-damaged", kind="permanent", status=422, message="it is damaged", hint="restore it again")

formats: st.SearchStrategy[SeedFormat | None] = st.none() | st.sampled_from(
    ("raw", "qcow2", "vhdx", "vmdk", "vdi", "vhd")
)
#: Names may hold commas, colons and equals signs, as long as none of it looks like the next disk.
NEXT = re.compile(r",[a-z]{2,4}[a-z0-9]{0,4}=(?:[a-z0-9]+:)?/")
paths = st.text("abyz09 ,:=._-/", max_size=20).map(lambda name: f"/{name}").filter(lambda path: not NEXT.search(path))
targets = st.sampled_from(["vda", "vdb", "sdc"])
disks = st.dictionaries(targets, st.integers(1, 1 << 20).map(lambda n: n * 512), min_size=1)


def spelt(disk: ExistingDisk) -> str:
    return (f"{disk.target}=" if disk.target else "") + (f"{disk.format}:" if disk.format else "") + disk.path


def answer(typed: str) -> str:
    try:
        parse_seed(typed)
    except BadRequest as error:
        return f"{error.code}: {error.hint[: len('--seed existing:')]}"
    return "understood"


def summary(kind: str, size: int = 1 << 20) -> PointSummary:
    return PointSummary.model_validate(
        {
            "point": SEED if kind == "seed" else POINT,
            "parent": None if kind == "seed" else SEED,
            "kind": kind,
            "consistency": "crash",
            "instant": START,
            "published": START,
            "checkpoint": None,
            "disks": (DiskSpec(target="vda", size=size),),
            "guest_bytes": 0,
            "wire_bytes": 0,
            "stored_bytes": 0,
        }
    )


def facts(seeding: Seeding | None, latest: PointSummary | None, *, tracked: bool = True) -> CycleFacts:
    position = Position(vm=VM, state="waiting", epoch=0, latest=latest, incoming=None, free_bytes=0, seeding=seeding)
    disk = DiskFacts(size=1 << 20, tracked=tracked, fingerprint_good=True)
    return CycleFacts(
        replica="ab" * 16,
        epoch=0,
        position=position,
        running=True,
        at_rest=False,
        disks={"vda": disk, "vdb": disk},
        checkpoints=(),
        spool=None,
    )


@given(path=paths, said=formats)
def test_one_copy_is_read_as_it_was_meant(path: str, said: SeedFormat | None) -> None:
    disk = ExistingDisk(path=path, format=said)
    assert parse_seed(f"existing:{spelt(disk)}") == ExistingSeed(disks=(disk,))


@given(named=st.dictionaries(targets, st.tuples(paths, formats), min_size=1))
def test_several_copies_are_read_as_they_were_meant(named: dict[str, tuple[str, SeedFormat | None]]) -> None:
    wish = ExistingSeed(
        disks=tuple(ExistingDisk(target=target, path=path, format=said) for target, (path, said) in named.items())
    )
    assert parse_seed("existing:" + ",".join(map(spelt, wish.disks))) == wish


@given(text=st.text(max_size=30))
def test_whatever_is_typed_is_understood_or_refused_with_the_right_spelling(text: str) -> None:
    for typed in (text, f"existing:{text}"):
        assert answer(typed) in {"understood", "seed-invalid: --seed existing:"}


@given(sizes=disks, named=st.sets(targets, min_size=1))
def test_each_copy_belongs_to_a_disk_that_is_replicated(sizes: dict[str, int], named: set[str]) -> None:
    wish = ExistingSeed(disks=tuple(ExistingDisk(target=target, path=f"/{target}.raw") for target in sorted(named)))
    if named <= set(sizes):
        offered = seed_disks("web", wish, sizes)
        assert offered is not None
        assert [(disk.target, disk.size) for disk in offered] == [(target, sizes[target]) for target in sorted(named)]
    else:
        with pytest.raises(BadRequest, match="no replicated disk"):
            seed_disks("web", wish, sizes)


@given(sizes=disks)
def test_a_copy_without_a_disk_is_that_of_the_only_one(sizes: dict[str, int]) -> None:
    wish = ExistingSeed(disks=(ExistingDisk(path="/web.raw"),))
    if len(sizes) > 1:
        with pytest.raises(BadRequest, match="not clear"):
            seed_disks("web", wish, sizes)
    else:
        assert [disk.target for disk in seed_disks("web", wish, sizes) or ()] == list(sizes)
    assert seed_disks("web", NetworkSeed(), sizes) == ()
    assert seed_disks("web", None, sizes) is None


def test_while_the_replica_reads_the_primary_waits_and_when_it_failed_a_person_decides() -> None:
    assert decide(facts(Seeding(phase="reading"), None)) == Wait(reason=WAITS_FOR_SEED)
    assert decide(facts(Seeding(phase="failed", failed=PROBLEM), None)) == SeedFailed(problem=PROBLEM)


@given(tracked=st.booleans())
def test_what_was_seeded_is_compared_and_a_disk_without_a_copy_is_sent_whole(tracked: bool) -> None:
    step = decide(facts(None, summary("seed"), tracked=tracked))
    assert isinstance(step, Capture)
    assert (step.kind, step.parent, step.base) == ("resync", SEED, None)
    assert step.modes["vda"] == "compare"
    assert step.reason == "vda: seeded from an existing copy; vdb: a new disk"


def test_a_seed_is_never_started() -> None:
    record = ReplicaRecord(vm=VM, name="web", owner="ab" * 16, interval=60, keep=3, state=State.REPLICATING, epoch=0)
    seed, point = summary("seed"), summary("resync")
    assert plan_unplanned(record, [point, seed], None, now=START, primary="silent").point == POINT
    with pytest.raises(Conflict, match="seed"):
        plan_unplanned(record, [point, seed], SEED, now=START, primary="silent")
    with pytest.raises(NotFound, match="no recovery point"):
        plan_unplanned(record, [seed], None, now=START, primary="silent")
