"""A network map for people."""

from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from vmreplica.cli.output import printable
from vmreplica.model.networks import NetworksReport

_WORDS: Final = {"none": "unplugged", "user": "QEMU's own user network, as on the primary"}


def networks_view(report: NetworksReport) -> RenderableType:
    """Show a map, and what becomes of each interface at a failover."""
    name = printable(report.name)
    lines = [Text(f"Networks of {name} after a failover to this host", style="bold")]
    lines += [Text(f"  {printable(theirs)} -> {printable(ours)}") for theirs, ours in sorted(report.networks.items())]
    if not report.networks:
        lines.append(Text("  no map: each network is looked for under its own name"))
    lines += [Text(f"  interface {nic} gets {plan}") for nic, plan in sorted(report.addresses.items())]
    for nic in report.interfaces:
        place = _WORDS.get(nic.place) or f"plugged in to {printable(nic.place)}"
        lines.append(Text(f"  interface {nic.number} ({printable(nic.mac or '')}, {printable(nic.source)}): {place}"))
    lines += [Text(f"! {printable(note)}", style="yellow") for note in report.notes]
    return Group(*lines)
