"""Starts of protected VMs behind a real API, without a hypervisor."""

from collections.abc import Callable

from point_kit import VM as VM_ID

from vmreplica.model.errors import Refused
from vmreplica.model.start import AutostartReport, StartAnswer, StartQuestion, StartReport


class SmallStarts:
    """Says yes to the VM web, and no to all others."""

    def __init__(self, note: Callable[..., None]) -> None:
        self._note = note

    def may_start(self, vm: str, question: StartQuestion) -> StartAnswer:
        """Answer the hook."""
        self._note("may-start", vm, question.name, question.policy)
        return StartAnswer(allowed=question.name == "web", reason="" if question.name == "web" else "it lives on beta")

    def start(self, vm: str, *, sure: bool, dry_run: bool) -> StartReport:
        """Start a VM, or tell what would happen."""
        self._note("start", vm, sure, dry_run)
        allowed = vm == "web"
        if not (allowed or sure or dry_run):
            raise Refused("start-refused", f"{vm} lives on beta", hint="vmreplica start VM --i-am-sure")
        started = not dry_run
        return StartReport(
            vm=VM_ID, name=vm, started=started, running=started, allowed=allowed, lives_elsewhere=not allowed,
            reason="" if allowed else f"{vm} lives on beta",
        )  # fmt: skip

    def set_autostart(self, vm: str, *, on: bool) -> AutostartReport:
        """Take note."""
        self._note("autostart", vm, on)
        return AutostartReport(vm=VM_ID, name=vm, on=on)
