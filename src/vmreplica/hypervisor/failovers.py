"""What a failover asks of the local libvirt: what the host offers, defining, starting, stopping, removing VMs."""

from collections.abc import Sequence
from typing import Final

import libvirt

from vmreplica.hypervisor import checkpoints
from vmreplica.hypervisor.abilities import Abilities, parse_abilities
from vmreplica.hypervisor.backup_xml import render_checkpoint
from vmreplica.hypervisor.checkpoints import CheckpointShelf
from vmreplica.hypervisor.connection import LONG_LIMIT
from vmreplica.hypervisor.domains import Domains, brief_of
from vmreplica.hypervisor.inspection import untracked_disks
from vmreplica.hypervisor.networks import network_leads_out
from vmreplica.hypervisor.probe import bridges, usable_domain_type, vlan_bridges
from vmreplica.hypervisor.views import DomainBrief
from vmreplica.model.ids import VmId

_KEEP: Final = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM


class Failovers(Domains):
    """The part of ``Hypervisor`` that failovers use."""

    _shelf: CheckpointShelf

    def abilities(self, arch: str = "x86_64") -> Abilities:
        """Tell what this host offers to VMs: keyword arguments for ``definition_site.Site``."""
        domain_type = usable_domain_type()

        def ask(raw: libvirt.virConnect) -> Abilities:
            networks = frozenset(network.name() for network in raw.listAllNetworks() if network.isActive())
            return parse_abilities(
                raw.getDomainCapabilities(None, arch, None, domain_type),
                raw.getCapabilities(),
                domain_type=domain_type,
                networks=networks,
                bridges=bridges(),
                vlan_bridges=vlan_bridges(),
            )

        return self._connection.call("ask what this host offers", ask, repeatable=True)

    def network_leads_out(self, name: str) -> bool:
        """Tell whether a libvirt network reaches other networks: it forwards, or is a bridge that others use.

        Raises:
            NotFound: ``network-unknown``: there is no such network here, or it is not active.
        """
        return self._connection.call(
            f"look at network {name}", lambda raw: network_leads_out(raw, name), repeatable=True
        )

    def define(self, xml: str) -> DomainBrief:
        """Define a domain, not started with the host.

        Raises:
            Conflict: another VM has its name (``vm-exists``).
        """

        def define(raw: libvirt.virConnect) -> DomainBrief:
            domain = raw.defineXML(xml)
            domain.setAutostart(0)
            return brief_of(domain)

        return self._connection.call("define a VM", define, repeatable=True)

    def start(self, vm: VmId) -> None:
        """Start a defined VM; one that runs already is left running."""
        self._with(vm, "start", lambda domain: None if domain.isActive() else _ignore(domain.create()),
                   limit=LONG_LIMIT)  # fmt: skip

    def start_paused(self, vm: VmId) -> None:
        """Start a defined VM so far that its guest executes nothing yet; one that runs already is left alone."""

        def start(domain: libvirt.virDomain) -> None:
            if not domain.isActive():
                domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

        self._with(vm, "start", start, limit=LONG_LIMIT)

    def resume(self, vm: VmId) -> None:
        """Let a paused VM go on; one that runs is fine."""

        def resume(domain: libvirt.virDomain) -> None:
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()

        self._with(vm, "resume", resume, limit=LONG_LIMIT)

    def begin_tracking(self, vm: VmId, checkpoint: str, targets: Sequence[str]) -> None:
        """Make a checkpoint of ours without reading anything, and let libvirt forget it again: its bitmaps record on.

        Args:
            vm: a running or paused VM.
            checkpoint: a new name of ours; one that libvirt knows already stays as it is.
            targets: its disks; those that cannot hold a bitmap are left out.

        Raises:
            BadRequest: the name is not one of ours (``checkpoint-foreign``).
        """
        checkpoints.require_ours(checkpoint)

        def track(domain: libvirt.virDomain) -> None:
            untracked = untracked_disks(domain, domain.XMLDesc())
            tracked = [target for target in targets if target not in untracked]
            if not tracked:
                return
            if checkpoint not in checkpoints.names(domain):
                domain.checkpointCreateXML(render_checkpoint(checkpoint, tracked))
            self._shelf.keep(vm, checkpoint, domain.checkpointLookupByName(checkpoint).getXMLDesc())
            checkpoints.hide(domain, self._shelf, vm)

        self._with(vm, f"make checkpoint {checkpoint} of", track, limit=LONG_LIMIT)

    def stop(self, vm: VmId) -> None:
        """Pull a VM's plug; one that is off already is fine."""
        self._with(vm, "stop", lambda domain: _ignore(domain.destroy()) if domain.isActive() else None,
                   limit=LONG_LIMIT)  # fmt: skip

    def undefine(self, vm: VmId, *, keep_files: bool = False) -> None:
        """Remove a VM's definition with all libvirt keeps about it; its disks stay.

        Args:
            vm: which.
            keep_files: its UEFI variables and the state of its TPM stay, too.
        """
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | (_KEEP if keep_files else libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        )
        self._with(vm, "undefine", lambda domain: _ignore(domain.undefineFlags(flags)))
        self._shelf.forget_all(vm)


def _ignore(_result: int) -> None:
    return None
