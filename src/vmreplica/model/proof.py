"""What is known about the worth of a relationship's points, for health to judge; ages and periods in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubFacts:
    """Whether all points held here were read and checked lately."""

    #: Within which each point is to be checked; None: switched off.
    period: float | None
    #: Since the point that waits longest was checked or, never checked, was published; None: there is no point.
    age: float | None
    #: What is damaged, in a sentence naming points and disks; None: nothing.
    damage: str | None = None
    #: Whether the damage is out of the newest point, so that only older points suffer from it.
    newest_good: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyFacts:
    """What the last comparison with the primary came to."""

    #: Since then.
    age: float
    #: Whether the replica had what the primary had.
    same: bool
    #: In a sentence, with point, disk and places.
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFacts:
    """What the boot tests came to."""

    #: Within which one is due; None: there is no schedule.
    period: float | None
    #: Since the last one ended or, when there was none, the schedule was made; None: neither.
    age: float | None
    #: How many failed, one after the other, up to now.
    failures: int = 0
    #: How the last one failed, in a sentence.
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuiesceFacts:
    """Whether application-consistent points come as wanted."""

    #: How many attempts failed, one after the other, up to now.
    failures: int = 0
    #: How the last one failed, in a sentence.
    text: str = ""
    #: The guest's file systems are frozen still, though no point is being begun.
    frozen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceFacts:
    """The room for points; bytes."""

    #: Which file system, for people.
    place: str
    free: int
    #: What is always left free: below it no point is taken in.
    min_free: int
    #: Seconds until that is reached, as it went lately; None: it does not shrink, or nobody can tell yet.
    full_in: float | None = None
