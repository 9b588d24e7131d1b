"""What happens to relationships, as the journal keeps it and ``vmreplica events`` shows it. No logic."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AwareDatetime, Field

from vmreplica.model.ids import VmId
from vmreplica.model.shape import Shape

#: What an event is about; ``--kind`` chooses by it.
EventKind = Literal[
    "cycle",
    "receipt",
    "health",
    "failover",
    "test",
    "planned",
    "cancel",
    "commit",
    "reverse",
    "fencing",
    "start",
    "enable",
    "disable",
    "pause",
    "resume",
    "import",
    "hand-over",
    "points",
    "retention",
    "merge",
    "scrub",
    "verify",
    "repair",
    "quiesce",
    "boot-test",
    "export",
    "mount",
    "space",
    "notice",
    "agent",
]
KINDS: tuple[str, ...] = get_args(EventKind)

#: How urgent an event is; the two last ones are the levels of health.
EventSeverity = Literal["info", "warning", "critical"]


class JournalEvent(Shape):
    """One thing that happened."""

    #: Grows with time, also over a journal that was begun anew; has no other meaning.
    id: Annotated[int, Field(ge=0)]
    at: AwareDatetime
    #: None: it is about the host.
    vm: VmId | None
    #: The VM's name at that time, as far as known.
    name: str = ""
    kind: EventKind
    severity: EventSeverity = "info"
    #: Stable, for scripts: ``failed-over``, ``point-merged``, or the code of an error.
    code: str
    text: str
    #: Figures and names that belong to it, by kind.
    details: dict[str, Any] = Field(default_factory=dict)


class EventsReport(Shape):
    """Events, oldest first."""

    events: tuple[JournalEvent, ...]
    #: Where to go on: the ``after`` of the next question.
    newest: Annotated[int, Field(ge=0)]


class RecordsQuery(Shape):
    """Which runs or events are asked for."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    #: None chosen: all.
    kinds: tuple[EventKind, ...] = ()
    #: Not before this instant.
    since: AwareDatetime | None = None
