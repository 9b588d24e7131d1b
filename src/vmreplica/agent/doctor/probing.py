"""Probes side by side, each with a time limit: what hangs is named, and the others are told all the same."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from vmreplica.model.errors import VmReplicaError
from vmreplica.model.findings import Finding, found

Probe = Callable[[], Sequence[Finding]]

_log: Final = structlog.get_logger(__name__)


def run_probes(probes: Mapping[str, Probe], *, limit: float) -> list[Finding]:
    """Run all probes at once; an error and a probe that is late become findings, never exceptions.

    Args:
        probes: by what they look at.
        limit: seconds for all of them together. A late one is left to itself; what it finds is lost.
    """
    runs = [_Run(subject, probe) for subject, probe in probes.items()]
    deadline = time.monotonic() + limit
    return [finding for run in runs for finding in run.result(deadline, limit)]


class _Run:
    """One probe in a thread of its own, which does not keep the process alive."""

    def __init__(self, subject: str, probe: Probe) -> None:
        self._subject = subject
        self._probe = probe
        self._found: list[Finding] = []
        self._done = threading.Event()
        threading.Thread(target=self._work, name="probe", daemon=True).start()

    def result(self, deadline: float, limit: float) -> list[Finding]:
        """Wait for the probe and give what it found."""
        if self._done.wait(max(0.0, deadline - time.monotonic())):
            return self._found
        return [found("check-timed-out", self._subject, f"no answer within {limit:.0f} s")]

    def _work(self) -> None:
        try:
            self._found = list(self._probe())
        except VmReplicaError as error:
            self._found = [failed(self._subject, error)]
        except OSError as error:
            self._found = [found("check-failed", self._subject, str(error), hint="journalctl -u vmreplica")]
        except Exception as error:  # noqa: BLE001 - a defect in one look must not hide what the others see
            _log.exception("a check failed unexpectedly", subject=self._subject)
            text = f"{type(error).__name__}: {error}"
            self._found = [found("check-failed", self._subject, text, hint="a defect: see the agent's log")]
        finally:
            self._done.set()


def failed(subject: str, error: VmReplicaError) -> Finding:
    """Say that something could not be looked at."""
    return found("check-failed", subject, f"{error.message} ({error.code})", hint=error.hint)
