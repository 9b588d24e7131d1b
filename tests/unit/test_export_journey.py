"""A first copy in a directory: written, interrupted, damaged, brought, and deltas that wait for it meanwhile."""

import datetime as dt
import functools
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from export_kit import DELTA, HERE, Journey
from point_kit import VM, segment_of
from pyrage import x25519
from repository_kit import OWNER, offer
from spool_kit import POINT, opening

from vmreplica.failover.plan import plan_unplanned
from vmreplica.model.errors import Conflict, Corrupt, Unreachable, VmReplicaError
from vmreplica.model.states import State
from vmreplica.parcel import Secret, prepare_export
from vmreplica.parcel.parcel import Parcel

pytestmark = pytest.mark.seeding

KEY = x25519.Identity.generate()
OTHER_VM = "99999999-2222-3333-4444-555555555555"


@pytest.fixture
def journey(tmp_path: Path) -> Journey:
    return Journey(tmp_path)


@pytest.fixture
def sealed(tmp_path: Path) -> Journey:
    return Journey(tmp_path, recipient=str(KEY.to_public()))


def test_deltas_are_published_on_a_base_that_comes_later_and_the_chain_reads_as_it_was_sent(journey: Journey) -> None:
    awaited = journey.export()
    assert (awaited.point, awaited.waits_for) == (POINT, POINT)
    assert journey.send_delta().waits_for == POINT
    assert _state(journey) is State.WAITING
    assert journey.replica.position().awaited == POINT
    assert journey.replica.apply_retention() == 0

    report = journey.bring()
    assert (report.point, report.was_here) == (POINT, False)
    assert [point.waits_for for point in journey.replica.points()] == [None, None]
    assert _state(journey) is State.REPLICATING
    assert journey.replica.position().awaited is None
    for target in ("vda", "vdb"):
        subprocess.run(["qemu-img", "check", "-q", str(journey.replica.image(DELTA, target))], check=True)
    assert not (journey.replica.dir / "importing").exists()


def _state(journey: Journey) -> State:
    return journey.replica.record.state


def test_the_checksum_list_is_one_that_coreutils_check(journey: Journey) -> None:
    journey.export()
    done = subprocess.run(
        ["sha256sum", "--strict", "--check", "SHA256SUMS"], cwd=journey.usb, check=True, capture_output=True, text=True
    )
    listed = {line.rpartition(":")[0] for line in done.stdout.splitlines()}
    there = {str(path.relative_to(journey.usb)) for path in journey.files()}
    assert listed == there - {"SHA256SUMS"}


def test_an_encrypted_export_shows_nothing_of_the_definition_and_opens_with_its_key_only(sealed: Journey) -> None:
    sealed.export()
    assert not any(b"<domain/>" in path.read_bytes() or b"VMRSEG" in path.read_bytes() for path in sealed.files())
    assert sealed.refusal().code == "identity-needed"
    assert sealed.refusal(Secret(identity=str(x25519.Identity.generate()))).code == "export-key-differs"
    assert sealed.refusal(Secret(identity="nothing")).code == "identity-invalid"
    assert not sealed.bring(Secret(identity=f"# made by age-keygen\n{KEY}\n")).was_here


def test_a_passphrase_opens_what_it_has_closed(tmp_path: Path) -> None:
    journey = Journey(tmp_path, passphrase="correct horse")  # noqa: S106 - made up here
    journey.export()
    assert journey.refusal().code == "passphrase-needed"
    assert journey.refusal(Secret(passphrase="wrong horse")).code == "passphrase-wrong"  # noqa: S106 - likewise
    assert not journey.bring(Secret(passphrase="correct horse")).was_here  # noqa: S106 - likewise


def test_an_import_that_is_repeated_is_told_that_it_was_here(journey: Journey) -> None:
    journey.export()
    assert not journey.bring().was_here
    assert journey.bring().was_here
    journey.restart()
    assert journey.bring().was_here


@pytest.mark.parametrize("kind", ["vmreplica-export.json", "opening.json", "closing.json", "SHA256SUMS", ".seg"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_one_changed_bit_in_any_file_is_found_and_the_right_file_mends_it(
    tmp_path: Path, kind: str, encrypted: bool
) -> None:
    journey = Journey(tmp_path, recipient=str(KEY.to_public()) if encrypted else None)
    secret = Secret(identity=str(KEY))
    journey.export()
    dice = random.Random(kind)
    hit = dice.choice([path for path in journey.files() if kind in path.name])
    right = hit.read_bytes()
    place = dice.randrange(len(right))
    hit.write_bytes(right[:place] + bytes([right[place] ^ 1 << dice.randrange(8)]) + right[place + 1 :])
    error = journey.refusal(secret)
    assert error.code in {"export-damaged", "export-not-awaited", "export-for-another-host", "replica-unknown"}
    assert error.code == "export-damaged" or kind == "vmreplica-export.json"
    assert str(hit if error.code == "export-damaged" else journey.usb) in error.message
    hit.write_bytes(right)
    assert not journey.bring(secret).was_here


def test_half_a_copy_is_told_by_the_first_missing_file_and_goes_on_when_the_rest_is_there(
    journey: Journey, tmp_path: Path
) -> None:
    journey.export()
    copy = tmp_path / "copy"
    shutil.copytree(journey.usb, copy)
    segment = copy / POINT / "vdb" / "00000" / "00000001.seg"
    segment.unlink()
    error = journey.refusal(directory=copy)
    assert error.code == "export-incomplete"
    assert "vdb/00000/00000001.seg" in error.message
    (copy / "SHA256SUMS").unlink()
    assert "SHA256SUMS" in journey.refusal(directory=copy).message
    shutil.copytree(journey.usb, copy, dirs_exist_ok=True)
    assert not journey.bring(directory=copy).was_here


def test_what_was_taken_in_before_a_kill_is_not_read_again(journey: Journey, tmp_path: Path) -> None:
    journey.export()
    away = tmp_path / "away.seg"
    (journey.usb / POINT / "vdb" / "00000" / "00000002.seg").rename(away)
    base = journey.replica.awaiting.base
    assert base is not None
    journey.replica.awaiting.begin()
    first = journey.usb / POINT / "vda" / "00000" / "00000000.seg"
    journey.replica.awaiting.put("vda", 0, first.read_bytes())
    journey.restart()
    assert journey.replica.awaiting.begin() == {"vda": {0}, "vdb": set()}
    away.rename(journey.usb / POINT / "vdb" / "00000" / "00000002.seg")
    right = first.read_bytes()
    first.write_bytes(bytes(len(right)))
    assert not journey.bring().was_here, "the first segment was here already"


def _of_nobody(journey: Journey) -> str:
    (journey.usb / "vmreplica-export.json").unlink()
    return "export-unknown"


def _for_another_host(journey: Journey) -> str:
    path = journey.usb / "vmreplica-export.json"
    path.write_text(path.read_text().replace(HERE, "d" * 32))
    return "export-for-another-host"


def _of_another_vm(journey: Journey) -> str:
    path = journey.usb / "vmreplica-export.json"
    path.write_text(path.read_text().replace(VM, OTHER_VM))
    return "replica-unknown"


def _gone(journey: Journey) -> str:
    journey.usb.rename(journey.root / "elsewhere")
    return "export-gone"


def _linked(journey: Journey) -> str:
    folder = journey.usb / POINT / "vda" / "00000"
    folder.rename(journey.root / "outside")
    folder.symlink_to(journey.root / "outside")
    return "export-damaged"


def _huge(journey: Journey) -> str:
    with (journey.usb / POINT / "vda" / "00000" / "00000000.seg").open("r+b") as fh:
        fh.truncate(1 << 40)
    return "export-damaged"


def _a_pipe(journey: Journey) -> str:
    path = journey.usb / "SHA256SUMS"
    path.unlink()
    subprocess.run(["mkfifo", str(path)], check=True)
    return "export-damaged"


@pytest.mark.parametrize(
    "spoil",
    [_of_nobody, _for_another_host, _of_another_vm, _gone, _linked, _huge, _a_pipe],
    ids=lambda act: act.__name__,
)
def test_a_directory_that_is_not_the_awaited_export_gets_a_clear_answer(
    journey: Journey, spoil: Callable[[Journey], str]
) -> None:
    journey.export()
    code = spoil(journey)
    assert journey.refusal().code == code


def test_an_export_that_is_not_finished_is_not_awaited(journey: Journey) -> None:
    Parcel(journey.seed, journey.point.opening).put("vda", 0, b"x")
    error = journey.refusal()
    assert error.code == "export-not-awaited"
    assert "not finished" in error.message


def test_an_export_goes_on_where_it_was_interrupted(journey: Journey) -> None:
    parcel = Parcel(journey.seed, journey.point.opening)
    body = segment_of(journey.point.disk("vda"), 0)
    parcel.put("vda", 0, body)
    with (journey.usb / POINT / "checksums.part").open("ab") as fh:
        fh.write(b"0123456789abcdef  half a li")
    again = Parcel(journey.seed, journey.point.opening)
    assert again.held() == {"vda": {0}, "vdb": set()}
    written = journey.usb / POINT / "vda" / "00000" / "00000000.seg"
    before = written.stat().st_mtime_ns
    journey.export()
    assert written.stat().st_mtime_ns == before
    assert not (journey.usb / POINT / "checksums.part").exists()
    assert not journey.bring().was_here


def test_a_lost_answer_of_the_replica_is_followed_by_the_same_announcement(journey: Journey) -> None:
    told = []

    def unheard(base: object) -> None:
        told.append(base)
        raise Unreachable("peer-unreachable", "the line is cut")

    announce, journey.announce = journey.announce, unheard  # type: ignore[method-assign, assignment]
    with pytest.raises(Unreachable):
        journey.export()
    journey.announce = announce  # type: ignore[method-assign]
    assert journey.export().waits_for == POINT
    assert journey.replica.awaiting.base == told[0], "the export was not written anew"
    assert journey.export().waits_for == POINT


def test_a_point_that_had_to_be_given_up_is_replaced_by_the_next_one(journey: Journey) -> None:
    Parcel(journey.seed, opening("vda", "vdb", point=DELTA)).put("vda", 0, b"of another point")
    journey.export()
    assert sorted(path.name for path in journey.usb.iterdir()) == [POINT, "SHA256SUMS", "vmreplica-export.json"]


def test_a_medium_that_was_pulled_out_or_changed_is_not_written_on(journey: Journey, tmp_path: Path) -> None:
    parcel = Parcel(journey.seed, journey.point.opening)
    journey.usb.rename(tmp_path / "pulled")
    with pytest.raises(Unreachable, match="cannot be used"):
        parcel.put("vda", 0, b"x")
    journey.usb.mkdir()
    with pytest.raises(Unreachable, match="no export in it"):
        parcel.put("vda", 0, b"x")
    prepare_export(str(tmp_path / "other"), vm=OTHER_VM, name="db", primary=OWNER, replica=HERE)
    shutil.copy(tmp_path / "other" / "vmreplica-export.json", journey.usb)
    with pytest.raises(Unreachable, match="another export, of db"):
        parcel.put("vda", 0, b"x")
    assert [path.name for path in journey.usb.iterdir()] == ["vmreplica-export.json"]


def test_a_directory_in_use_is_not_taken(journey: Journey, tmp_path: Path) -> None:
    journey.export()
    prepare = functools.partial(prepare_export, vm=VM, name="web", primary=OWNER, replica=HERE)
    with pytest.raises(Conflict) as caught:
        prepare(str(journey.usb))
    assert caught.value.code == "export-exists"
    assert prepare(str(journey.usb), known=journey.seed) == journey.seed
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").touch()
    with pytest.raises(Conflict) as caught:
        prepare(str(photos))
    assert caught.value.code == "export-directory-not-empty"
    with pytest.raises(Unreachable) as missing:
        prepare(str(tmp_path / "no" / "such"))
    assert missing.value.code == "export-gone"
    fresh = tmp_path / "fresh"
    first = prepare(str(fresh))
    assert prepare(str(fresh)) != first, "nothing was begun there: nothing is lost"


def test_a_fingerprint_and_a_failover_have_to_wait_for_the_base(journey: Journey) -> None:
    journey.export()
    journey.send_delta()
    with pytest.raises(Conflict) as caught:
        journey.receiver.fingerprint(OWNER, VM, DELTA, "vda", 1, 0, 1)
    assert (caught.value.code, caught.value.kind) == ("base-awaited", "transient")
    with pytest.raises(Conflict) as refused:
        plan_unplanned(
            journey.replica.record, journey.replica.points(), None, now=dt.datetime.now(dt.UTC), primary="silent"
        )
    assert refused.value.code == "base-awaited"
    assert "vmreplica import" in refused.value.hint


def test_an_export_that_is_given_up_goes_with_all_that_waits_for_it(journey: Journey) -> None:
    journey.export()
    journey.send_delta()
    journey.receiver.give_up_base(OWNER, VM)
    journey.receiver.give_up_base(OWNER, VM)
    assert journey.replica.points() == []
    assert list((journey.replica.dir / "points").iterdir()) == []
    assert journey.refusal().code == "export-not-awaited"
    journey.restart()
    assert journey.replica.position().awaited is None


def test_giving_up_is_finished_after_a_kill(journey: Journey) -> None:
    journey.export()
    journey.send_delta()
    record = journey.replica.dir / "awaited.json"
    record.write_text(record.read_text().replace('"given_up": false', '"given_up": true'))
    journey.restart()
    assert journey.replica.points() == []
    assert not record.exists()


def test_an_import_is_finished_after_a_kill_behind_its_publication(journey: Journey) -> None:
    journey.export()
    journey.send_delta()
    record = journey.replica.dir / "awaited.json"
    kept = record.read_text()
    journey.bring()
    record.write_text(kept)
    journey.restart()
    assert not record.exists()
    assert [point.waits_for for point in journey.replica.points()] == [None, None]


def test_the_list_of_points_outlives_a_restart_while_the_base_is_away(journey: Journey) -> None:
    journey.export()
    journey.send_delta()
    before = journey.replica.points()
    journey.restart()
    assert journey.replica.points() == before
    assert not journey.bring().was_here


def test_a_replica_with_points_of_its_own_waits_for_nothing(journey: Journey) -> None:
    journey.export()
    base = journey.replica.awaiting.base
    assert base is not None
    journey.bring()
    other = base.model_copy(update={"opening": opening("vda", "vdb", point=DELTA)})
    with pytest.raises(Conflict) as caught:
        journey.receiver.await_base(OWNER, other)
    assert caught.value.code == "replica-has-points"
    assert journey.receiver.await_base(OWNER, base).waits_for is None, "told once more after a lost answer"


def test_a_stranger_can_neither_announce_nor_give_up(journey: Journey) -> None:
    journey.export()
    base = journey.replica.awaiting.base
    assert base is not None
    for act in (
        lambda: journey.receiver.await_base("d" * 32, base),
        lambda: journey.receiver.give_up_base("d" * 32, VM),
    ):
        with pytest.raises(VmReplicaError) as caught:
            act()
        assert caught.value.code == "not-your-replica"
    assert journey.replica.position().awaited == POINT


def test_a_segment_of_the_awaited_export_is_checked_like_one_from_the_network(journey: Journey) -> None:
    journey.export()
    journey.replica.awaiting.begin()
    with pytest.raises(Corrupt):
        journey.replica.awaiting.put("vda", 0, b"not a segment")


def test_offers_change_the_policy_while_the_base_is_away(journey: Journey) -> None:
    journey.export()
    assert journey.receiver.offer(OWNER, VM, offer(keep=7)).awaited == POINT
    assert journey.replica.record.keep.last == 7
