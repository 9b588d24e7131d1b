"""Shapes of starting a protected VM: the hook's question, the command, and their answers."""

from typing import Annotated

from pydantic import StringConstraints

from vmreplica.model.ids import VmId
from vmreplica.model.shape import Shape


class StartQuestion(Shape):
    """May a VM that libvirt is about to start do so? Asked by its hook."""

    name: Annotated[str, StringConstraints(max_length=1024)]
    #: The policy in the very definition that is started, as its metadata has it.
    policy: Annotated[str, StringConstraints(max_length=65536)]


class StartAnswer(Shape):
    """Yes, or no with the reason."""

    allowed: bool
    reason: str = ""


class StartRequest(Shape):
    """Start a VM by the agent."""

    #: A person says that it runs nowhere else, whatever its replica says or does not say.
    sure: bool = False
    dry_run: bool = False


class AutostartRequest(Shape):
    """Whether the agent starts a VM with the host."""

    on: bool


class AutostartReport(Shape):
    """What was set."""

    vm: VmId
    name: str
    on: bool


class HookReport(Shape):
    """What became of libvirt's hook."""

    path: str
    #: Whether it was written now: libvirt has to take notice.
    changed: bool


class StartReport(Shape):
    """What a start did, or would do."""

    vm: VmId
    name: str
    #: Whether it was started now.
    started: bool
    #: Whether it runs now.
    running: bool
    #: Whether nothing but a person's word is needed, or allowed it.
    allowed: bool
    #: Proven to live on its replica: a start here makes two of it.
    lives_elsewhere: bool = False
    #: What the replica said, or why it could not be asked.
    reason: str = ""
