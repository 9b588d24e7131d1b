"""When boot tests are due, what they add up to, what their pictures are, and when memory is too short for one."""

import datetime as dt
import struct
import zlib
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from point_kit import VM, make_summary

from vmreplica.failover.booting import plan_boot, require_memory
from vmreplica.hypervisor.picture import to_png
from vmreplica.model.boot import (
    BootRecord,
    BootResult,
    BootSchedule,
    BootSign,
    BootSkip,
    BootVerdict,
    BootWish,
    after,
    boot_facts,
    interrupted,
    next_boot,
    parse_sign,
)
from vmreplica.model.errors import Conflict, Corrupt, NoSpace, NotFound
from vmreplica.model.states import State
from vmreplica.repository import ReplicaRecord

pytestmark = pytest.mark.points

SINCE = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
DAY = 86400
POINT = "20260301T120000Z-00000001"
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Chatham"]).map(ZoneInfo)
seconds = st.integers(0, 400 * DAY)
times = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))


def _record(every: int, at: str | None, attempted: dt.datetime | None) -> BootRecord:
    return BootRecord(schedule=BootSchedule(every=every, at=at, since=SINCE), attempted=attempted)


@given(every=st.integers(60, 30 * DAY), later=st.none() | seconds, zone=zones)
def test_without_a_time_of_day_the_next_test_is_an_interval_after_the_last(
    every: int, later: int | None, zone: ZoneInfo
) -> None:
    attempted = None if later is None else SINCE + dt.timedelta(seconds=later)
    due = next_boot(_record(every, None, attempted), zone)
    assert due == (SINCE if attempted is None else attempted + dt.timedelta(seconds=every))


@given(days=st.integers(1, 30), at=times, later=st.none() | seconds, zone=zones)
def test_with_a_time_of_day_it_is_at_that_time_and_within_half_a_day_of_the_interval(
    days: int, at: str, later: int | None, zone: ZoneInfo
) -> None:
    attempted = None if later is None else SINCE + dt.timedelta(seconds=later)
    due = next_boot(_record(days * DAY, at, attempted), zone)
    assert due is not None
    assert due.tzinfo is dt.UTC
    # A clock time that a change of the clocks leaves out is the one an hour later.
    local = due.astimezone(zone)
    assert abs((local.hour - int(at[:2])) % 24) in {0, 1}
    assert local.minute == int(at[3:]) or local.hour != int(at[:2])
    wanted = SINCE if attempted is None else attempted + dt.timedelta(days=days)
    early, late = (0.0, 26.0) if attempted is None else (-12.0, 14.0)
    assert early * 3600 <= (due - wanted).total_seconds() <= late * 3600


@given(days=st.integers(1, 3), at=times, zone=zones, runs=st.integers(2, 20))
def test_tests_at_a_time_of_day_come_once_in_each_interval(days: int, at: str, zone: ZoneInfo, runs: int) -> None:
    attempted, dates = None, []
    for _ in range(runs):
        due = next_boot(_record(days * DAY, at, attempted), zone)
        assert due is not None
        dates.append(due.astimezone(zone).date())
        attempted = due + dt.timedelta(seconds=20)
    gaps = {(later - earlier).days for earlier, later in pairwise(dates)}
    assert gaps == {days}


verdicts = st.sampled_from(["alive", "silent", "off", "not-started"])


@given(history=st.lists(verdicts, max_size=8))
def test_failures_in_a_row_are_counted_until_one_comes_to_life(history: list[BootVerdict]) -> None:
    record = BootRecord()
    for verdict in history:
        record = after(record, BootResult(point=POINT, started=SINCE, verdict=verdict, sign="x"))
    tail = 0
    for verdict in reversed(history):
        if verdict == "alive":
            break
        tail += 1
    assert record.failures == tail
    facts = boot_facts(record, SINCE + dt.timedelta(seconds=5))
    assert (facts is None) == (not history)
    if facts is not None:
        assert (facts.period, facts.age, bool(facts.text)) == (None, 5.0, tail > 0)


moments = st.none() | st.integers(0, 3).map(lambda hour: SINCE + dt.timedelta(hours=hour))


@given(attempted=moments, tested=moments, skipped=moments)
def test_an_attempt_that_came_to_nothing_is_known_as_one_that_was_interrupted(
    attempted: dt.datetime | None, tested: dt.datetime | None, skipped: dt.datetime | None
) -> None:
    record = BootRecord(
        attempted=attempted,
        last=BootResult(point=POINT, started=tested, verdict="alive", sign="x") if tested else None,
        skipped=BootSkip(at=skipped, why="x") if skipped else None,
    )
    newest = max(filter(None, (tested, skipped)), default=None)
    assert interrupted(record) is (attempted is not None and (newest is None or newest < attempted))


def test_a_test_of_before_its_schedule_does_not_make_the_next_one_overdue() -> None:
    old = BootResult(point=POINT, started=SINCE - dt.timedelta(days=90), verdict="alive", sign="x")
    record = BootRecord(schedule=BootSchedule(every=DAY, since=SINCE), last=old)
    facts = boot_facts(record, SINCE + dt.timedelta(hours=1))
    assert facts is not None
    assert facts.age == 3600.0
    assert next_boot(BootRecord(last=old), dt.UTC) is None


def test_the_newest_sound_point_is_booted_and_a_damaged_one_only_refused() -> None:
    record = ReplicaRecord(vm=VM, name="web", owner="ab" * 16, interval=60, keep=3, state="replicating", epoch=0)
    ids = [f"2026030{day}T120000Z-0000000{day}" for day in (3, 2, 1)]
    rotten = make_summary(ids[0], damaged=("vda at 1.0 MiB",))
    points = [rotten, make_summary(ids[1]), make_summary(ids[2], consistency="application")]
    wish = BootWish()
    assert plan_boot(record, points, None, wish, leads_out=False).point == ids[1]
    assert plan_boot(record, points, "latest-app", wish, leads_out=False).point == ids[2]
    plan = plan_boot(record, points, ids[2], BootWish(network="lan"), leads_out=True)
    assert (plan.point, plan.kind, len(plan.warnings)) == (ids[2], "boot-test", 1)
    with pytest.raises(Corrupt, match="is damaged"):
        plan_boot(record, points, ids[0], wish, leads_out=False)
    with pytest.raises(Corrupt, match="is damaged"):
        plan_boot(record, [rotten], None, wish, leads_out=False)
    with pytest.raises(NotFound):
        plan_boot(record, [], None, wish, leads_out=False)
    with pytest.raises(Conflict):
        plan_boot(record.model_copy(update={"state": State.FAILING_OVER}), points, None, wish, leads_out=False)


@given(
    sign=st.sampled_from(["auto", "agent", "console:web login:", "console:a:b", "tcp:1", "tcp:65535", "script:/a b"])
)
def test_signs_are_read_as_they_are_spelled(sign: str) -> None:
    assert parse_sign(sign).text() == sign


@given(text=st.text(max_size=40))
def test_no_text_becomes_a_sign_by_accident(text: str) -> None:
    try:
        sign = parse_sign(text)
    except ValueError:
        return
    assert isinstance(sign, BootSign)
    assert text.partition(":")[0] == sign.kind
    assert "\n" not in sign.value


@given(data=st.data(), width=st.integers(1, 20), height=st.integers(1, 20), comment=st.booleans())
def test_a_ppm_becomes_a_png_of_the_same_pixels(data: st.DataObject, width: int, height: int, comment: bool) -> None:
    drawn = data.draw(st.binary(min_size=width * height * 3, max_size=width * height * 3))
    head = f"P6\n{'# made by QEMU' + chr(10) if comment else ''}{width} {height}\n255\n".encode()
    png = to_png(head + drawn)
    shape = png.index(b"IHDR") + 4
    assert struct.unpack_from(">IIBBBBB", png, shape) == (width, height, 8, 2, 0, 0, 0)
    start = png.index(b"IDAT")
    (length,) = struct.unpack_from(">I", png, start - 4)
    rows = zlib.decompress(png[start + 4 : start + 4 + length])
    size = width * 3 + 1
    assert b"".join(rows[y * size + 1 : (y + 1) * size] for y in range(height)) == drawn
    assert not any(rows[::size])
    (crc,) = struct.unpack_from(">I", png, start + 4 + length)
    assert crc == zlib.crc32(png[start : start + 4 + length])
    assert to_png(png) == png


@pytest.mark.parametrize(
    "picture", [b"", b"P5\n1 1\n255\nx", b"P6\n2 2\n255\nshort", b"P6\n0 0\n255\n", b"P6\n9 9\n65535\n"]
)
def test_what_is_no_picture_is_refused(picture: bytes) -> None:
    with pytest.raises(Corrupt):
        to_png(picture)


@given(wanted=st.integers(1, 1 << 42), total=st.integers(1 << 28, 1 << 42), share=st.floats(0, 1))
def test_a_copy_never_takes_the_memory_that_has_to_stay(wanted: int, total: int, share: float) -> None:
    available = int(total * share)
    if available - wanted >= total // 20 + (256 << 20):
        require_memory("web", wanted, total=total, available=available)
        return
    with pytest.raises(NoSpace) as caught:
        require_memory("web", wanted, total=total, available=available)
    assert caught.value.code == "memory-short"
