"""``vmreplica status --check``: one line and an exit code, as monitoring plug-ins have them."""

from typing import TYPE_CHECKING, Final

from vmreplica.cli.client import AgentClient
from vmreplica.cli.output import printable, read_report

if TYPE_CHECKING:
    from vmreplica.model.report import StatusReport

_EXITS: Final = {"normal": 0, "warning": 1, "critical": 2}
#: Nobody knows: the agent does not answer, or there is no such VM.
UNKNOWN: Final = 3


def check(client: AgentClient, vm: str | None) -> tuple[str, int]:
    """Ask how it is; gives the line and the exit code: 0 well, 1 warning, 2 critical, 3 unknown."""
    from vmreplica.model.errors import VmReplicaError  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import StatusReport  # noqa: PLC0415 - slow to import

    try:
        report = read_report(StatusReport, client.get("/v1/status", vm=vm))
    except VmReplicaError as error:
        return f"VMREPLICA UNKNOWN - {printable(error.message)} ({error.code})", UNKNOWN
    return judge(report)


def judge(report: "StatusReport") -> tuple[str, int]:
    """Make the line and the exit code of a report."""
    rows = sorted(report.relationships, key=lambda row: -_EXITS[row.health.level])
    worst = rows[0].health.level if rows else "normal"
    ill = [
        f"{row.name}: " + "; ".join(f"{reason.text} ({reason.code})" for reason in row.health.reasons)
        for row in rows
        if row.health.reasons
    ]
    count = len(rows)
    text = ", ".join(ill) or f"{count} {'relationship is' if count == 1 else 'relationships are'} well"
    word = {"normal": "OK"}.get(worst, worst.upper())
    oldest = max((row.point_age for row in rows if row.point_age is not None), default=None)
    figures = f" | relationships={count} ill={len(ill)}" + ("" if oldest is None else f" oldest_point={oldest:.0f}s")
    # A bar begins the figures, whatever a name or a message has in it.
    return printable(f"VMREPLICA {word} - {text}").replace("|", "/").replace("\n", " ") + figures, _EXITS[worst]
