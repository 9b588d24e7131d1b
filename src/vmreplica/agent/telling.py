"""Telling the administrator's program and service of changes of health, each in its own thread with a bounded queue."""

import threading
import time
from collections import deque
from typing import Final, Protocol

import structlog

from vmreplica.agent.config import HealthSection
from vmreplica.agent.hook_command import HookCommand
from vmreplica.agent.journal import Journal
from vmreplica.agent.webhook import Webhook
from vmreplica.model.errors import Conflict
from vmreplica.model.telling import HealthMessage, HealthTestReport, TellingResult

_log: Final = structlog.get_logger(__name__)

#: Messages that wait at most; the oldest ones give way.
MAX_WAITING: Final = 100


class Listener(Protocol):
    """Who is told."""

    place: str

    def tell(self, message: HealthMessage, stopping: threading.Event) -> str | None:
        """Tell it; gives why that failed, or None."""


class Telling:
    """Thread-safe; never blocks who has something to tell.

    Args:
        section: whom to tell.
        journal: where failures are written down.
    """

    def __init__(self, section: HealthSection, journal: Journal) -> None:
        self._hook = self._webhook = None
        if section.hook is not None:
            self._hook = _Channel("hook", HookCommand(section.hook, section.hook_limit), journal)
        if section.webhook is not None:
            webhook = Webhook(
                section.webhook,
                section.webhook_limit,
                secret_file=section.webhook_secret_file,
                ca_file=section.webhook_ca_file,
            )
            self._webhook = _Channel("webhook", webhook, journal)

    def start(self) -> None:
        """Begin."""
        for channel in self._channels():
            channel.start()

    def stop(self) -> None:
        """End within a moment; what waits is not told."""
        for channel in self._channels():
            channel.stop()

    def put(self, message: HealthMessage) -> None:
        """Tell everybody, in a while."""
        for channel in self._channels():
            channel.put(message)

    def test(self, message: HealthMessage) -> HealthTestReport:
        """Tell everybody now, once.

        Raises:
            Conflict: ``nobody-to-tell``.
        """
        if not self._channels():
            raise Conflict(
                "nobody-to-tell",
                "neither a hook nor a webhook is configured",
                hint="set hook or webhook in [health] of the configuration: docs/howto/monitoring.md",
            )
        return HealthTestReport(
            hook=self._hook.test(message) if self._hook else None,
            webhook=self._webhook.test(message) if self._webhook else None,
        )

    def _channels(self) -> list["_Channel"]:
        return [channel for channel in (self._hook, self._webhook) if channel is not None]


class _Channel:
    """One listener with its queue."""

    def __init__(self, what: str, listener: Listener, journal: Journal) -> None:
        self._what = what
        self._listener = listener
        self._journal = journal
        self._waiting: deque[HealthMessage] = deque()
        self._wake = threading.Condition()
        self._stopping = threading.Event()
        #: One at a time, tests included.
        self._busy = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=what, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._wake:
            self._stopping.set()
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def put(self, message: HealthMessage) -> None:
        with self._wake:
            if len(self._waiting) >= MAX_WAITING:
                lost = self._waiting.popleft()
                _log.warning("a change of health is not told, too many wait", to=self._listener.place, name=lost.name)
            self._waiting.append(message)
            self._wake.notify_all()

    def test(self, message: HealthMessage) -> TellingResult:
        began = time.monotonic()
        why = self._tell(message)
        seconds = time.monotonic() - began
        return TellingResult(to=self._listener.place, ok=why is None, text=why or "it was told", seconds=seconds)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._stopping.is_set())
                if self._stopping.is_set():
                    return
                message = self._waiting.popleft()
            why = self._tell(message)
            if why is not None:
                _log.warning(
                    "a change of health could not be told", to=self._listener.place, name=message.name, why=why
                )
                text = f"the {self._what} {self._listener.place} was not told of a change of health: {why}"
                self._journal.event(
                    message.vm, "notice", f"{self._what}-failed", text, name=message.name, severity="warning"
                )

    def _tell(self, message: HealthMessage) -> str | None:
        with self._busy:
            try:
                return self._listener.tell(message, self._stopping)
            except Exception as error:  # noqa: BLE001 - whatever a program or service does, others are told
                # Not its text: it may have an address in it.
                _log.warning("telling a change of health failed unexpectedly", error=type(error).__name__)
                return f"it failed unexpectedly ({type(error).__name__})"
