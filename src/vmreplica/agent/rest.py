"""What the images of a VM were when its last point was taken from them while it was off: so that one is enough.

Nothing sound rests on it. A record that is lost, or stale because images changed, costs one more point, which then
carries only what differs.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from vmreplica.fsio import publish_bytes
from vmreplica.model.ids import PointId, VmId

#: By disk target: a text that changes when its images do.
Identities = Mapping[str, str]


class RestBook:
    """Only one thread may work on a VM at a time.

    Args:
        directory: made when missing; nobody else writes in it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remember(self, vm: VmId, point: PointId, identities: Identities) -> None:
        """Take note of the images that a point is taken from, published or not yet."""
        record = json.dumps({"point": point, "images": dict(identities)})
        publish_bytes(self._path(vm), record.encode(), durable=False)

    def rests(self, vm: VmId, point: PointId, identities: Identities | None) -> bool:
        """Tell whether a point was taken from just these images, and they are as they were.

        Args:
            vm: whose images.
            point: the point.
            identities: as they are now; None for a VM that runs.
        """
        return identities is not None and self._recorded(vm, point) == dict(identities)

    def same_images(self, vm: VmId, point: PointId, identities: Identities | None) -> bool:
        """Tell the same of the images alone: what else makes up the VM may have changed."""
        recorded = self._recorded(vm, point)
        if identities is None or not isinstance(recorded, dict):
            return False
        return bool(identities) and all(recorded.get(target) == image for target, image in identities.items())

    def _recorded(self, vm: VmId, point: PointId) -> object:
        try:
            record = json.loads(self._path(vm).read_text())
        except (OSError, ValueError):
            return None
        return record["images"] if isinstance(record, dict) and record.get("point") == point else None

    def forget(self, vm: VmId) -> None:
        """Forget a VM; harmless when there is nothing."""
        self._path(vm).unlink(missing_ok=True)

    def _path(self, vm: VmId) -> Path:
        return self._directory / f"{vm}.json"
