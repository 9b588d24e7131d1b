"""Application-consistent points on the command line: the option of enable, and how they are shown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from vmreplica.cli.output import printable

if TYPE_CHECKING:
    from vmreplica.model.point import PointSummary
    from vmreplica.model.quiesce import AppConsistent
    from vmreplica.model.report import CycleReport, RelationshipReport

AppConsistentOption = Annotated[
    str | None,
    typer.Option(
        "--app-consistent",
        metavar="RULE",
        help="How often the guest's agent freezes its file systems for the instant of a point: every=1h, cycles=12, "
        "off. Not given: as before, at first off.",
    ),
]


def read_app_consistent(text: str | None) -> "AppConsistent | None":
    """Read a rule as typed; None when it is not given.

    Raises:
        BadRequest: ``app-consistent-invalid``.
    """
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.quiesce import EXAMPLES, parse_app_consistent  # noqa: PLC0415 - slow to import

    if text is None:
        return None
    try:
        return parse_app_consistent(text)
    except ValueError as error:
        hint = f"--app-consistent {EXAMPLES}"
        raise BadRequest("app-consistent-invalid", f"--app-consistent: {error}", hint=hint) from error


def app_consistent_text(relation: "RelationshipReport") -> str:
    """Say how often a VM's points are application-consistent."""
    from vmreplica.model.quiesce import format_app_consistent  # noqa: PLC0415 - slow to import

    return format_app_consistent(relation.app_consistent)


def consistency_cell(point: "PointSummary") -> str:
    """Say in a table how consistent a point is; one that should have been more is marked."""
    return f"{point.consistency} *" if point.quiesce_failure else point.consistency


def consistency_notes(points: Sequence["PointSummary"]) -> list[Text]:
    """Explain the marks: the newest reason, as the others are mostly the same."""
    failed = [point for point in points if point.quiesce_failure]
    if not failed:
        return []
    text = f"* should have been application-consistent. {failed[0].point}: {printable(failed[0].quiesce_failure)}"
    return [Text(text, style="yellow")]


def quiescence_text(cycle: "CycleReport") -> str:
    """Say at the end of a line how a guest was quiesced in a cycle; nothing when that was not due."""
    went = cycle.quiescence
    if went is None:
        return ""
    if went.failure is not None:
        return f"; not application-consistent: {printable(went.failure)}"
    return f"; application-consistent, frozen for {went.frozen or 0:.2f} s"
