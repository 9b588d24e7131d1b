"""A replica's network map: shown beside the interfaces that it is for, and changed entry by entry."""

from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.definition import parse_untrusted
from vmreplica.hypervisor.definition_nics import Nic, place_of, read_nic
from vmreplica.hypervisor.definition_site import Site
from vmreplica.model.errors import BadRequest
from vmreplica.model.networks import InterfaceReport, NetworksChange, NetworksReport, changed, changed_addresses
from vmreplica.repository import Replica


def networks_report(replica: Replica, hypervisor: Hypervisor) -> NetworksReport:
    """Tell a VM's network map, and what it makes of the interfaces that the VM has at its newest point.

    Raises:
        BadRequest: the definition of that point is none (``definition-...``).
    """
    record = replica.record
    site = Site(disks={}, network_map=record.network_map, **hypervisor.abilities())
    points = replica.points()
    return NetworksReport(
        vm=record.vm,
        name=record.name,
        networks=record.network_map,
        addresses=record.addresses,
        interfaces=_interfaces(replica.definition(points[0].point), site) if points else (),
        notes=site.notes(),
    )


def change_networks(replica: Replica, change: NetworksChange) -> None:
    """Change the map and the addresses; counts from the next failover on.

    Raises:
        BadRequest: ``network-map-invalid``.
    """
    try:
        networks = changed(replica.record.network_map, change)
        addresses = changed_addresses(replica.record.addresses, change)
        replica.update(network_map=networks, addresses=addresses)
    except ValueError as error:
        name = replica.record.name
        raise BadRequest(
            "network-map-invalid", f"{name}: {error}", hint=f"`vmreplica networks {name}` shows the map"
        ) from error


def _interfaces(untrusted: str, site: Site) -> tuple[InterfaceReport, ...]:
    nics = [read_nic(interface) for interface in parse_untrusted(untrusted).iterfind("devices/interface")]
    return tuple(
        InterfaceReport(number=number, mac=nic.mac, source=nic.origin, place=_place(nic, site))
        for number, nic in enumerate(nics)
    )


def _place(nic: Nic, site: Site) -> str:
    return nic.kind if nic.kind == "user" else str(place_of(nic, site))
