"""The verbs of proof, as the API knows them: verify on the primary."""

from vmreplica.agent.primary import PrimarySide
from vmreplica.agent.protect import not_protected
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.verifying import Verifying, Wish
from vmreplica.model.report import TaskReport


class ProofVerbs:
    """The part of ``Agent`` that is about the proof of points."""

    _primaries: PrimarySide
    _verifying: Verifying

    def verify(self, vm: str, *, point: str | None, repair: bool, rate: int | None) -> TaskReport:
        """Compare a point at the replica with what this host knows that it must hold."""
        wish = Wish(point=point, repair=repair, rate=rate)
        return self._verifying.begin(self._verified(vm), wish).report()

    def cancel_verify(self, vm: str) -> None:
        """End a verification."""
        self._verifying.cancel(self._verified(vm))

    def _verified(self, vm: str) -> Relationship:
        self._require_primary(vm)
        rel = self._primaries.protected(vm)
        if rel is None:
            self._explain_missing(vm)
            raise not_protected(vm)
        return rel

    def _require_primary(self, vm: str) -> None:
        raise NotImplementedError

    def _explain_missing(self, vm: str) -> None:
        raise NotImplementedError
