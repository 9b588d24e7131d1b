"""What is told to the administrator's own programs and services when health changes. No logic."""

from typing import Literal

from pydantic import AwareDatetime

from vmreplica.model.health import Health
from vmreplica.model.ids import HostId, HostName, VmId
from vmreplica.model.shape import Shape


class HealthMessage(Shape):
    """A change of a VM's health as one host sees it: standard input of the hook, body of the webhook."""

    format: Literal["vmreplica-health-1"] = "vmreplica-health-1"
    #: Nothing has changed: somebody asked for ``vmreplica health-test``.
    test: bool = False
    at: AwareDatetime
    host: HostName
    host_id: HostId
    #: None in a test.
    vm: VmId | None
    name: str
    role: Literal["primary", "replica"] | None
    #: The other host's name, or its id when it is not paired any more.
    peer: str
    state: str
    was: Health
    health: Health


class TellingResult(Shape):
    """How telling somebody went."""

    #: ``/usr/local/bin/hook``, or scheme, host and port of the webhook; the rest of its address may be secret.
    to: str
    ok: bool
    text: str
    seconds: float


class HealthTestReport(Shape):
    """Who was told; None: nobody is configured."""

    hook: TellingResult | None
    webhook: TellingResult | None
