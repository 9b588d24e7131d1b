"""Which versions are needed, which are tested with, and which are known to be bad. Data and a pure judgement."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vmreplica.agent.doctor.host_facts import SystemFacts
from vmreplica.hypervisor.examine import HostLook
from vmreplica.model.findings import Finding, fine, found

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Component:
    """What a component must at least be, and from which version on it is tested."""

    name: str
    minimum: Version
    tested: Version


@dataclass(frozen=True, slots=True)
class KnownBad:
    """A fault of the versions from ``first`` to below ``fixed``."""

    component: str
    first: Version
    fixed: Version
    fault: str
    remedy: str


#: libvirt 7.6 and QEMU 6.1 brought checkpoints whose bitmaps record by themselves: deleting one loses nothing.
COMPONENTS: Final = (
    Component("libvirt", (7, 6, 0), (9, 0, 0)),
    Component("QEMU", (6, 1, 0), (7, 2, 0)),
    Component("libnbd", (1, 5, 2), (1, 14, 0)),
    Component("Python", (3, 11, 0), (3, 11, 0)),
)

KNOWN_BAD: Final = (
    KnownBad(
        "QEMU",
        (10, 1, 0),
        (10, 2, 0),
        "was reported to crash when its block nodes are listed during a block stream (QEMU issue 3149)",
        "upgrade QEMU to 10.2 or newer; until then run no block stream on a protected VM",
    ),
    KnownBad(
        "libnbd",
        (0, 0, 0),
        (1, 5, 2),
        "its Python binding loses the memory of every read",
        "upgrade libnbd to 1.5.2 or newer",
    ),
)


def judge_system(facts: SystemFacts) -> list[Finding]:
    """Judge what the command line sees without libvirt."""
    return [
        *_judge("libnbd", facts.libnbd),
        *_judge("Python", facts.python),
        fine("versions", "kernel", f"Linux {facts.kernel}"),
    ]


def judge_hypervisor(look: HostLook) -> list[Finding]:
    """Judge libvirt and QEMU."""
    findings = [*_judge("libvirt", split(look.libvirt)), *_judge("QEMU", split(look.qemu))]
    if look.backup is False:
        findings.append(found("backup-unsupported", "backup jobs", "libvirt says that it cannot run any"))
    return findings


def split(number: int) -> Version:
    """Read a version as libvirt counts it."""
    return number // 1_000_000, number // 1000 % 1000, number % 1000


def _judge(name: str, version: Version) -> Iterator[Finding]:
    wanted = next(component for component in COMPONENTS if component.name == name)
    text = spell(version)
    bad = [fault for fault in KNOWN_BAD if fault.component == name and fault.first <= version < fault.fixed]
    for fault in bad:
        yield found("version-known-bad", name, f"{name} {text} {fault.fault}", remedy=fault.remedy)
    if version < wanted.minimum:
        need = spell(wanted.minimum)
        yield found("version-too-old", name, f"{text}; at least {need} is needed", component=name, wanted=need)
    elif version < wanted.tested:
        tested = spell(wanted.tested)
        yield found("version-untested", name, f"{text}; tested from {tested} on", component=name, wanted=tested)
    elif not bad:
        yield fine("versions", name, text)


def spell(version: Version) -> str:
    """Write a version."""
    return ".".join(map(str, version))
