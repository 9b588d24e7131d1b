"""Letting a guest shut itself down within a time limit: by its agent, by the power button, in the end by its plug."""

import threading
import time
from collections.abc import Callable
from typing import Final, Literal

import structlog

from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.shutdown import Bell, Power, PowerSwitch
from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.ids import VmId, VmName
from vmreplica.model.units import format_duration
from vmreplica.peer.line import Halt

_log: Final = structlog.get_logger(__name__)

#: How it went off in the end.
Manner = Literal["agent", "button", "plug"]

#: Seconds until a guest that does nothing is asked again: some hear the button only once they have booted.
_AGAIN: Final = 20.0
#: Seconds between looks when no event comes.
_LOOK: Final = 1.0
_WORDS: Final = {"agent": "by its guest agent", "button": "by the power button"}


def require_quiet(name: VmName, power: Power, *, force: bool) -> None:
    """See that a VM can be shut down, stays off, and loses nothing by that.

    Raises:
        Conflict: ``vm-transient``, ``vm-has-saved-state``, ``vm-restarts-itself``, ``guest-hears-nothing``.
    """
    if not power.persistent:
        raise Conflict(
            "vm-transient",
            f"{name} is a transient VM: when it is shut down it is gone",
            hint="make it persistent first: virsh define",
        )
    if power.saved:
        raise Conflict(
            "vm-has-saved-state",
            f"{name} is off with its memory saved, which would be lost",
            hint=f"virsh start {name}, or virsh managedsave-remove {name}",
        )
    if power.active and power.on_poweroff != "destroy":
        raise Conflict(
            "vm-restarts-itself",
            f"{name} does not stay off: its <on_poweroff> is {power.on_poweroff}",
            hint=f"virsh edit {name}: <on_poweroff>destroy</on_poweroff>, then shut it down once",
        )
    if power.active and not force and not (power.awake and (power.agent or power.button)):
        why = "it has no guest agent that answers and no power button" if power.awake else "it is paused"
        raise Conflict(
            "guest-hears-nothing",
            f"{name} cannot be asked to shut itself down: {why}",
            hint="--force pulls its plug",
        )


def shut_down(
    hypervisor: Hypervisor,
    vm: VmId,
    name: VmName,
    *,
    patience: float,
    force: bool,
    halt: Halt,
    say: Callable[[str], None],
) -> Manner | None:
    """Shut a VM down and wait until it is off.

    Args:
        hypervisor: this host's libvirt.
        vm: which.
        name: for messages.
        patience: seconds that its guest has.
        force: pull its plug after that.
        halt: ends the wait.
        say: told what is waited for.

    Returns:
        How it went off; None: it was off.

    Raises:
        Conflict: ``guest-does-not-shut-down``; ``cycle-stopped`` when halted.
    """
    switch, gone = hypervisor.power_switch(), threading.Event()
    power = switch.look(vm)
    if not power.active:
        return None
    end = hypervisor.watch(lambda which, event: gone.set() if which == vm and event in {"stopped", "crashed"} else None)
    try:
        with halt.ending(gone.set):
            manner = _ask(switch, vm, power, _Wait(hypervisor, vm, gone, halt, patience), say)
    finally:
        end()
    if manner is not None:
        return manner
    if not force:
        raise Conflict(
            "guest-does-not-shut-down",
            f"{name} did not shut itself down within {format_duration(patience)}; it may still do so",
            hint="shut it down from within and try again, give it more --timeout, or --force to pull its plug",
        )
    say("pulling its plug")
    hypervisor.stop(vm)
    return "plug"


class _Wait:
    """Waits until a VM is off, woken by libvirt's events."""

    def __init__(self, hypervisor: Hypervisor, vm: VmId, gone: threading.Event, halt: Halt, patience: float) -> None:
        self._hypervisor = hypervisor
        self._vm = vm
        self._gone = gone
        self._halt = halt
        self.deadline = time.monotonic() + patience

    def off(self, seconds: float) -> bool:
        """Wait, not beyond the deadline, until it is off."""
        until = min(self.deadline, time.monotonic() + seconds)
        while True:
            if self._halt.is_set():
                raise Conflict("cycle-stopped", "the shutdown is no longer waited for", kind="transient")
            if not self._hypervisor.running(self._vm):
                return True
            left = until - time.monotonic()
            if left <= 0:
                return False
            self._gone.wait(min(_LOOK, left))
            if not self._halt.is_set():
                self._gone.clear()


def _ask(switch: PowerSwitch, vm: VmId, power: Power, wait: _Wait, say: Callable[[str], None]) -> Manner | None:
    """Ask again and again, the agent first; None: time is up."""
    if not power.awake:
        return None
    bells: list[Bell] = [bell for bell in ("agent", "button") if getattr(power, bell)]
    number = 0
    while bells and time.monotonic() < wait.deadline:
        bell = bells[min(number, len(bells) - 1)]
        number += 1
        say(f"shutting the guest down {_WORDS[bell]}")
        try:
            switch.ask(vm, bell)
        except VmReplicaError as error:
            _log.info("the guest cannot be asked", vm=vm, how=bell, why=error.message)
        if wait.off(_AGAIN):
            return bell
    return None
