"""Sentences for people about verified points. Pure but for the local time zone."""

from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from vmreplica.cli.output import printable
from vmreplica.model.units import format_duration, format_size
from vmreplica.model.verified import DiskVerdict, Verdict, Verified, VerifyReport

_STYLES: Final[dict[Verdict, str]] = {"equal": "green", "repaired": "green", "unproven": "yellow", "wrong": "bold red"}
#: Wrong places of a disk that are shown.
_SHOWN: Final = 10


def verify_view(report: VerifyReport) -> RenderableType:
    """Show what a verification came to."""
    name, verified = printable(report.name), report.verified
    took = format_duration(report.seconds)
    heads: dict[Verdict, str] = {
        "equal": f"{name}: point {verified.point} is proven: it holds what the VM's disks held ({took}).",
        "repaired": f"{name}: point {verified.point}: what was wrong is right now ({took}).",
        "unproven": f"{name}: point {verified.point} cannot be proven ({took}).",
        "wrong": f"{name}: point {verified.point} is WRONG ({took}).",
    }
    lines: list[RenderableType] = [Text(heads[verified.verdict], style=_STYLES[verified.verdict])]
    for disk in verified.disks:
        lines += _disk(disk)
    lines += _remedy(report)
    return Group(*lines)


def verified_cell(verified: Verified | None) -> Text:
    """Say in a word or two whether a point was proven, for a list of points."""
    if verified is None:
        return Text("")
    when = f"{verified.when.astimezone():%m-%d %H:%M}"
    word = "WRONG" if verified.verdict == "wrong" else verified.verdict
    return Text(f"{word} {when}", style=_STYLES[verified.verdict])


def verified_pairs(verified: Verified | None) -> list[tuple[str, str | Text]]:
    """Show the verdict on the newest point among a VM's details."""
    if verified is None:
        return []
    text = f"{verified.verdict}, {verified.when.astimezone():%Y-%m-%d %H:%M}: point {verified.point}"
    return [("verified", Text(text, style=_STYLES[verified.verdict]))]


def _disk(disk: DiskVerdict) -> list[Text]:
    how = {"blocks": "block by block", "sum": "by its sum", "none": ""}[disk.how]
    read = f"{format_size(disk.read_bytes)} compared {how}" if how else "not compared"
    lines = [Text(f"  {disk.target}: {disk.verdict}, {read}")]
    lines += [Text(f"    wrong: {place.length} bytes from byte {place.offset} on") for place in disk.wrong[:_SHOWN]]
    if len(disk.wrong) > _SHOWN:
        lines.append(Text(f"    and {len(disk.wrong) - _SHOWN} more places, {format_size(disk.wrong_bytes)} in all"))
    if disk.why:
        lines.append(Text(f"    {printable(disk.why)}"))
    return lines


def _remedy(report: VerifyReport) -> list[Text]:
    name, repaired = printable(report.name), report.repaired
    if repaired is not None:
        good = repaired.verdict in {"equal", "repaired"}
        word = "is right" if good else "is NOT right" if repaired.verdict == "wrong" else "cannot be proven"
        sent = format_size(report.repair_wire_bytes)
        text = f"  brought again with point {repaired.point}, which {word}; {sent} sent"
        return [Text(text, style=_STYLES[repaired.verdict])]
    if report.verified.verdict == "wrong":
        return [
            Text(f"  vmreplica verify {name} --repair   (bring what is wrong again; the next cycle does it as well)"),
            Text(f"  vmreplica points {name}   (a point that is known to be wrong is used with --even-damaged only)"),
        ]
    return []
