"""Exports of points: what is written reads like the point, and whatever goes wrong leaves nothing behind."""

import subprocess
import threading
from pathlib import Path

import pytest
from machine_kit import leave_free, small_file_system
from repository_kit import SIZE, Primary, fill, new_replica, noise

from vmreplica.agent.meter import Meter
from vmreplica.agent.point_exports import PointExports, Writing, plan_export
from vmreplica.agent.tasks import Tasks
from vmreplica.model.errors import BadRequest, Conflict, Corrupt, NoSpace, NotFound
from vmreplica.model.taking import PointExportReport, PointExportWish
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2 import convert
from vmreplica.qcow2.convert import ConvertStopped
from vmreplica.repository import Replica

pytestmark = pytest.mark.points


@pytest.fixture
def primary() -> Primary:
    return Primary({"vda": SIZE, "vdb": 10 * CLUSTER + 512})


@pytest.fixture
def replica(tmp_path: Path, primary: Primary) -> Replica:
    (tmp_path / "store").mkdir()
    replica = new_replica(tmp_path / "store")
    fill(replica, primary, 3)
    return replica


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def writing(out: Path) -> Writing:
    return Writing(out.parent / "notes", Meter(), threading.Event())


def left(out: Path) -> list[str]:
    notes = out.parent / "notes"
    return sorted(path.name for directory in (out, notes) if directory.is_dir() for path in directory.iterdir())


def read_back(path: Path, form: str) -> bytes:
    raw = path.with_name("read-back")
    subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", str(path), str(raw)], check=True, timeout=60)
    content = raw.read_bytes()
    raw.unlink()
    return content


@pytest.mark.parametrize("form", ["qcow2", "raw", "vhdx", "vmdk"])
def test_every_format_reads_like_the_point_and_needs_no_other_file(
    replica: Replica, primary: Primary, out: Path, form: str
) -> None:
    point = replica.points()[1].point
    wish = PointExportWish.model_validate({"to": str(out), "format": form, "check": True})
    disks = writing(out).write(replica, point, plan_export(replica, point, wish), wish)
    assert [Path(disk.path).name.split(".")[0] for disk in disks] == ["web-vda", "web-vdb"]
    assert len(left(out)) == 2
    for disk in disks:
        expected = primary.expected[point][disk.target]
        content = read_back(Path(disk.path), form)
        assert content[: len(expected)] == expected
        assert not any(content[len(expected) :])
        assert Path(disk.path).stat().st_mode & 0o777 == 0o600


def test_one_disk_goes_into_the_file_that_was_named(replica: Replica, primary: Primary, out: Path) -> None:
    point = str(primary.latest)
    wish = PointExportWish(to=str(out / "data.img"), format="raw", disk="vdb")
    (disk,) = writing(out).write(replica, point, plan_export(replica, point, wish), wish)
    assert (out / "data.img").read_bytes() == primary.expected[point]["vdb"]
    assert disk.path == str(out / "data.img")


def test_nothing_is_overwritten_unless_it_is_asked_for(replica: Replica, primary: Primary, out: Path) -> None:
    point, precious = str(primary.latest), out / "data.img"
    precious.write_text("precious")
    wish = PointExportWish(to=str(precious), format="raw", disk="vdb")
    with pytest.raises(Conflict, match="is there already") as told:
        plan_export(replica, point, wish)
    assert (told.value.code, told.value.hint) == ("export-file-exists", "--force replaces it")
    precious.unlink()
    plan = plan_export(replica, point, wish)
    precious.write_text("appeared meanwhile")
    with pytest.raises(Conflict, match="appeared meanwhile"):
        writing(out).write(replica, point, plan, wish)
    assert (precious.read_text(), left(out)) == ("appeared meanwhile", ["data.img"])
    forced = wish.model_copy(update={"force": True})
    writing(out).write(replica, point, plan_export(replica, point, forced), forced)
    assert precious.read_bytes() == primary.expected[point]["vdb"]


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (("both.img", None), "export-needs-directory"),
        (("missing/one.img", "vda"), "export-directory-missing"),
        (("one.img", "sda"), "disk-unknown"),
        (("link", "vda"), "export-file-exists"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is(
    replica: Replica, primary: Primary, out: Path, what: tuple[str, str | None], code: str
) -> None:
    (out / "link").symlink_to(out / "elsewhere")
    to, disk = what
    wish = PointExportWish(to=str(out / to), disk=disk, force=True)
    with pytest.raises((BadRequest, NotFound, Conflict)) as told:
        plan_export(replica, str(primary.latest), wish)
    assert told.value.code == code
    assert told.value.hint


def test_an_export_that_is_cancelled_leaves_nothing(
    replica: Replica, primary: Primary, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports, task = PointExports(out.parent / "notes"), Tasks().start("export")
    wish = PointExportWish(to=str(out), check=True)
    plan = plan_export(replica, str(primary.latest), wish)
    real = convert.compare_images

    def slow(*args: object, **more: object) -> None:
        task.stop.set()  # type: ignore[union-attr]
        real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("vmreplica.agent.point_exports.compare_images", slow)

    def work(writing: Writing) -> PointExportReport:
        writing.write(replica, str(primary.latest), plan, wish)
        raise AssertionError("it went on")

    exports.begin(work, task)
    ended = threading.Event()
    task.then(lambda _error: ended.set())
    assert ended.wait(60)
    exports.stop()
    assert task.report().error_code == "export-cancelled"
    assert left(out) == []


def test_a_file_that_reads_differently_is_found_and_removed(
    replica: Replica, primary: Primary, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(image: Path, part: Path, form: str, **more: object) -> None:
        convert.convert_image(image, part, form, **more)  # type: ignore[arg-type]
        with part.open("r+b") as file:
            file.seek(3 * CLUSTER)
            file.write(noise(99))

    monkeypatch.setattr("vmreplica.agent.point_exports.convert_image", spoiled)
    wish = PointExportWish(to=str(out / "vda.img"), format="raw", disk="vda", check=True)
    plan = plan_export(replica, str(primary.latest), wish)
    with pytest.raises(Corrupt, match="Content mismatch at offset") as told:
        writing(out).write(replica, str(primary.latest), plan, wish)
    assert (told.value.code, left(out)) == ("export-differs", [])


def test_what_a_killed_agent_left_is_removed_at_the_next_start(replica: Replica, primary: Primary, out: Path) -> None:
    wish = PointExportWish(to=str(out), disk="vda")
    plan = plan_export(replica, str(primary.latest), wish)

    class Killed(BaseException):
        pass

    work = writing(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_args, **_more: None)  # a process that is killed removes nothing
        patch.setattr("vmreplica.agent.point_exports._put_in_place", _raise(Killed))
        with pytest.raises(Killed):
            work.write(replica, str(primary.latest), plan, wish)
    assert len(left(out)) == 2
    PointExports(out.parent / "notes").recover()
    assert left(out) == []


def _raise(kind: type[BaseException]) -> object:
    def fail(*_args: object, **_more: object) -> None:
        raise kind

    return fail


def test_a_full_file_system_is_said_before_and_leaves_nothing_when_it_fills_up_meanwhile(
    replica: Replica, primary: Primary, tmp_path: Path
) -> None:
    primary.send(replica, {"vda": {n: noise(n) for n in range(64)}})
    wish_of = {"format": "raw", "disk": "vda"}
    with small_file_system(tmp_path, 64) as mounted:
        wish = PointExportWish.model_validate({"to": str(mounted / "vda.img"), **wish_of})
        plan = plan_export(replica, str(primary.latest), wish)
        leave_free(mounted / "ballast", 2 * CLUSTER)
        with pytest.raises(NoSpace, match="the export of point"):
            plan_export(replica, str(primary.latest), wish)
        with pytest.raises(NoSpace):
            Writing(tmp_path / "notes", Meter(), threading.Event()).write(replica, str(primary.latest), plan, wish)
        assert not list(mounted.glob(".*.part"))


def test_a_conversion_is_stopped_at_once(replica: Replica, primary: Primary, out: Path) -> None:
    stop = threading.Event()
    stop.set()
    image = replica.image(str(primary.latest), "vda")
    shares: list[float] = []
    with pytest.raises(ConvertStopped):
        convert.convert_image(Path("/dev/zero"), out / "x", "raw", progress=shares.append, stop=stop)
    convert.convert_image(image, out / "y", "raw", progress=shares.append, stop=threading.Event())
    assert shares[-1] == 1.0
