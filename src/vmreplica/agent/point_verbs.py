"""What people do with single points: pin them, take them out as files, mount them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vmreplica.agent.acts import Act, Acts
from vmreplica.agent.mounts import Mounts
from vmreplica.agent.point_exports import PointExports, Writing, plan_export
from vmreplica.agent.tasks import Tasks
from vmreplica.failover.plan import resolve
from vmreplica.failover.sound import require_sound
from vmreplica.model.errors import Conflict, NotFound
from vmreplica.model.ids import PointId, VmId
from vmreplica.model.point import PointSummary
from vmreplica.model.report import RelationshipReport, TaskReport
from vmreplica.model.taking import PointExportReport, PointExportWish, PointMount
from vmreplica.repository import Replica


class PointVerbs:
    """Thread-safe; its public methods are part of the agent's facade.

    Args:
        find: gives the replica of a VM on this host, or says where it is.
        tidy: called with a VM of which a point is needed no longer.
        tasks: of this agent.
        acts: writes down what people ask for.
        runtime_dir: for the sockets of mounts.
        state_dir: for notes on exports.
    """

    def __init__(
        self,
        *,
        find: Callable[[str], Replica],
        tidy: Callable[[VmId], None],
        tasks: Tasks,
        acts: Acts,
        runtime_dir: Path,
        state_dir: Path,
    ) -> None:
        self._find = find
        self._tidy = tidy
        self._tasks = tasks
        self._acts = acts
        self._mounts = Mounts(runtime_dir / "mounts")
        self._exports = PointExports(state_dir / "exports")

    def recover(self) -> None:
        """Remove what a killed agent left; called before anything changes the images of points."""
        self._mounts.recover()
        self._exports.recover()

    def stop(self) -> None:
        """End mounts and exports; nothing of them is left."""
        self._exports.stop()
        self._mounts.stop()

    # ---- pins

    def pin(self, vm: str, point: str, reason: str) -> PointSummary:
        """Keep a point whatever the rules say; one that is pinned already gets the new reason."""
        replica = self._find(vm)
        with self._acts.act("points", replica.record.vm, "the pinning") as act:
            chosen = chosen_point(replica.record.name, replica.points(), point).point
            replica.pin(chosen, reason)
            act.done("point-pinned", f"point {chosen} stays: {reason}", point=chosen)
        return _summary(replica, chosen)

    def unpin(self, vm: str, point: str) -> PointSummary:
        """Leave a point to the rules again.

        Raises:
            NotFound: ``point-not-pinned``.
        """
        replica = self._find(vm)
        name = replica.record.name
        with self._acts.act("points", replica.record.vm, "the unpinning") as act:
            chosen = chosen_point(name, replica.points(), point).point
            if not replica.unpin(chosen):
                hint = f"vmreplica points {name} shows which points are held"
                raise NotFound("point-not-pinned", f"point {chosen} of {name} is not pinned", hint=hint)
            act.done("point-unpinned", f"point {chosen} is left to the rules again", point=chosen)
        self._tidy(replica.record.vm)
        return _summary(replica, chosen)

    # ---- exports

    def plan_export(self, vm: str, point: str, wish: PointExportWish) -> PointExportReport:
        """Tell what an export would write; changes nothing."""
        return _planned(self._find(vm), point, wish)

    def export(self, vm: str, point: str, wish: PointExportWish) -> TaskReport:
        """Write a point's disks into files of this host; the task is the writing."""
        replica = self._find(vm)
        plan = _planned(replica, point, wish)
        task = self._tasks.start(f"export of point {plan.point} of {plan.name}")
        with self._acts.act("export", plan.vm, "the export") as act:
            hold = replica.hold(plan.point, "export", f"written to {wish.to}", lasting=False)
        text = f"point {plan.point} was exported to {wish.to}"
        act.follow(task, "point-exported", text, point=plan.point, format=wish.format)

        def work(writing: Writing) -> PointExportReport:
            try:
                replica.verify_devices()
                disks = writing.write(replica, plan.point, plan.disks, wish)
            finally:
                replica.release(hold)
                self._tidy(plan.vm)
            return plan.model_copy(update={"disks": disks, "checked": wish.check})

        self._exports.begin(work, task)
        return task.report()

    # ---- mounts

    def mount(self, vm: str, point: str, *, seconds: int, even_damaged: bool) -> PointMount:
        """Make a point's disks readable over NBD on this host."""
        replica = self._find(vm)
        with self._acts.act("mount", replica.record.vm, "the mount") as act:
            chosen, warnings = _usable(replica, point, even_damaged=even_damaged)
            mount = self._mounts.begin(replica, chosen.point, seconds=seconds, warnings=warnings)
            act.done("point-mounted", f"point {chosen.point} is mounted", point=chosen.point, until=mount.until)
        return mount

    def unmount(self, vm: str, point: str | None) -> tuple[PointId, ...]:
        """End the mount of a point, or all mounts of a VM; tells which."""
        replica = self._find(vm)
        with self._acts.act("mount", replica.record.vm, "the unmounting") as act:
            chosen = None if point is None else chosen_point(replica.record.name, replica.points(), point).point
            ended = self._mounts.end(replica, chosen)
            _ended(act, ended)
        self._tidy(replica.record.vm)
        return ended

    def noted(self, report: RelationshipReport) -> RelationshipReport:
        """Say in a report which points are mounted."""
        mounts = self._mounts.of(report.vm) if report.role == "replica" else ()
        return report.model_copy(update={"mounts": mounts}) if mounts else report


def chosen_point(name: str, points: Sequence[PointSummary], choice: str) -> PointSummary:
    """Find the recovery point of an id, or the newest one: ``latest``, ``latest-app``.

    Raises:
        NotFound: ``no-points``, ``point-unknown``, ``no-application-point``.
    """
    bootable = [point for point in points if point.bootable]
    if not bootable:
        hint = "wait for the initial replication; `vmreplica status` shows it"
        raise NotFound("no-points", f"{name} has no recovery point here yet", hint=hint)
    wanted = resolve(name, points, choice)
    for point in bootable:
        if wanted in {None, point.point}:
            return point
    hint = f"`vmreplica points {name}` lists them; also: `latest`, or `latest-app`, the newest application-consistent"
    raise NotFound("point-unknown", f"{name} has no recovery point {choice} here", hint=hint)


def _usable(replica: Replica, choice: str, *, even_damaged: bool) -> tuple[PointSummary, tuple[str, ...]]:
    name, points = replica.record.name, replica.points()
    chosen = chosen_point(name, points, choice)
    if chosen.waits_for is not None:
        raise Conflict(
            "base-awaited",
            f"point {chosen.point} of {name} cannot be read yet: the first copy, point {chosen.waits_for}, travels in "
            "an export",
            hint="vmreplica import DIR takes it in, DIR being where the export arrived",
        )
    warnings = require_sound(name, points, chosen.point, even_damaged=even_damaged)
    replica.verify_devices()
    return chosen, warnings


def _planned(replica: Replica, choice: str, wish: PointExportWish) -> PointExportReport:
    chosen, warnings = _usable(replica, choice, even_damaged=wish.even_damaged)
    return PointExportReport(
        vm=replica.record.vm,
        name=replica.record.name,
        point=chosen.point,
        format=wish.format,
        disks=plan_export(replica, chosen.point, wish),
        warnings=warnings,
    )


def _summary(replica: Replica, point: PointId) -> PointSummary:
    return chosen_point(replica.record.name, replica.points(), point)


def _ended(act: Act, ended: Sequence[PointId]) -> None:
    act.done("point-unmounted", f"{', '.join(ended)}: mounted no longer", points=list(ended))
