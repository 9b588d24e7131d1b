"""Folding the images below a running VM into the lowest of them, by libvirt's active block commit."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import libvirt
from defusedxml.ElementTree import fromstring

from vmreplica.hypervisor.backup import running
from vmreplica.hypervisor.connection import LONG_LIMIT
from vmreplica.hypervisor.domains import Domains
from vmreplica.model.errors import Conflict, NotFound
from vmreplica.model.ids import VmId

#: Of jobs that end by themselves, libvirt shows no mirror.
_ACTIVE_COMMIT: Final = "active-commit"


@dataclass(frozen=True, slots=True)
class LiveDisk:
    """A disk of a running VM: what it stands on, and the job that changes that."""

    #: The image that is written, without symbolic links.
    top: Path
    #: libvirt's name of each image below it.
    below: Mapping[Path, str]
    #: The image that an active commit folds into; None without one.
    into: Path | None = None
    #: Whether that job only waits to be told to end.
    ready: bool = False
    #: Bytes done, and in all, of whatever job there is; 0 of 0 when libvirt does not tell.
    done: int = 0
    total: int = 0
    #: Whether another job works on the disk, or on the VM as a whole.
    foreign: bool = False


class BlockJobs(Domains):
    """The part of ``Hypervisor`` that works on chains of images. Each act may be repeated."""

    def live_disk(self, vm: VmId, target: str) -> LiveDisk:
        """Look at a disk of a running VM.

        Raises:
            Conflict: the VM is off (``vm-not-running``).
            NotFound: it has no such disk (``disk-unknown``).
        """

        def look(domain: libvirt.virDomain) -> LiveDisk:
            if not domain.isActive():
                raise Conflict(
                    "vm-not-running",
                    f"{domain.name()} is not running: its images are folded while it runs",
                    hint=f"virsh start {domain.name()}",
                )
            disk = parse_live_disk(domain.XMLDesc(), target, domain.blockJobInfo(target))
            # libvirt begins no commit beside a backup job, which ends soon.
            return replace(disk, foreign=True) if disk.into is None and running(domain) is not None else disk

        return self._with(vm, f"look at disk {target} of", look)

    def begin_commit(self, vm: VmId, target: str, image: str) -> None:
        """Begin to fold everything above an image into it, under the running VM, until ``pivot``.

        Args:
            vm: a running VM.
            target: one of its disks.
            image: libvirt's name of the lowest image, from ``LiveDisk.below``.
        """
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        self._with(
            vm,
            f"fold the images of disk {target} of",
            lambda domain: domain.blockCommit(target, image, None, 0, flags),
            limit=LONG_LIMIT,
        )

    def pivot(self, vm: VmId, target: str) -> None:
        """End a commit that is ready: the VM goes on upon the lowest image. Bitmaps go with it."""
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        self._with(vm, f"move disk {target} of", lambda domain: domain.blockJobAbort(target, flags), limit=LONG_LIMIT)

    def configured_image(self, vm: VmId, target: str) -> Path:
        """Tell on which image a disk will stand at the VM's next start.

        Raises:
            NotFound: ``disk-unknown``.
        """

        def look(domain: libvirt.virDomain) -> Path:
            disk = _disk(fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), forbid_dtd=True), target)
            return _file(disk)

        return self._with(vm, f"look at disk {target} of", look)

    def configure_image(self, vm: VmId, target: str, image: Path) -> None:
        """Let a disk stand on an image from the VM's next start on; what the VM runs on now is left alone.

        Raises:
            NotFound: ``disk-unknown``.
        """

        def configure(domain: libvirt.virDomain) -> None:
            xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
            changed = with_image(xml, target, image)
            if changed is not None:
                domain.connect().defineXML(changed)

        self._with(vm, f"define disk {target} of", configure)


def parse_live_disk(xml: str, target: str, job: Mapping[str, int] | None) -> LiveDisk:
    """Read what libvirt says about a disk and its job. Pure but for symbolic links.

    Args:
        xml: of the running domain.
        target: the disk.
        job: what libvirt says about its job; None or empty: there is none.

    Raises:
        NotFound: ``disk-unknown``.
    """
    disk = _disk(fromstring(xml, forbid_dtd=True), target)
    mirror = disk.find("mirror")
    ours = mirror is not None and mirror.get("job") == _ACTIVE_COMMIT
    return LiveDisk(
        top=_file(disk),
        below={_file(image): f"{target}[{image.get('index', '')}]" for image in _images_below(disk)},
        into=_file(mirror) if mirror is not None and ours else None,
        ready=ours and mirror is not None and mirror.get("ready") == "yes",
        done=job["cur"] if job else 0,
        total=job["end"] if job else 0,
        foreign=bool(job) and not ours,
    )


def with_image(xml: str, target: str, image: Path) -> str | None:
    """Put another image below a disk in an inactive definition; None when it stands on just that one by this name.

    Raises:
        NotFound: ``disk-unknown``.
    """
    root = fromstring(xml, forbid_dtd=True)
    disk = _disk(root, target)
    source = _source(disk)
    if source.get("file") == str(image):
        return None
    source.set("file", str(image))
    for known in disk.findall("backingStore"):
        disk.remove(known)  # of another image: libvirt looks itself
    return ET.tostring(root, encoding="unicode")


def _disk(root: ET.Element, target: str) -> ET.Element:
    for disk in root.iterfind("devices/disk"):
        found = disk.find("target")
        if found is not None and found.get("dev") == target:
            return disk
    raise NotFound("disk-unknown", f"{root.findtext('name')} has no disk {target} any more", hint="virsh domblklist")


def _images_below(disk: ET.Element) -> Iterator[ET.Element]:
    below = disk.find("backingStore")
    while below is not None and below.find("source") is not None:
        yield below
        below = below.find("backingStore")


def _source(element: ET.Element) -> ET.Element:
    source = element.find("source")
    return ET.Element("source") if source is None else source


def _file(element: ET.Element) -> Path:
    """Tell the file of a disk or image; a device or nothing likewise, since neither is ever looked for."""
    source = _source(element)
    return Path(os.path.realpath(source.get("file") or source.get("dev") or "/"))
