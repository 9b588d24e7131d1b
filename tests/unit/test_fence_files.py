"""The files that keep a VM from being started."""

import json
import time
from pathlib import Path

import pytest

from vmreplica.hypervisor.fence import PERMIT_SECONDS, Fence

pytestmark = pytest.mark.failover

VM = "4dea22b3-1d52-4dc8-8c9c-9bc0bb4a1b2c"


def test_a_forbidden_start_stays_forbidden_for_the_next_agent_until_it_is_allowed(tmp_path: Path) -> None:
    Fence(tmp_path / "fence").forbid(VM, "it runs on beta")
    again = Fence(tmp_path / "fence")
    assert again.reason(VM) == "it runs on beta"
    again.allow(VM)
    assert again.reason(VM) is None
    again.allow(VM)


def test_who_forbids_the_same_again_changes_nothing_and_a_new_reason_replaces_the_old(tmp_path: Path) -> None:
    fence = Fence(tmp_path)
    fence.forbid(VM, "one", ask=True)
    first = fence.find(VM)
    fence.forbid(VM, "one", ask=True)
    assert fence.find(VM) == first
    fence.forbid(VM, "another")
    found = fence.find(VM)
    assert found is not None
    assert (found.reason, found.ask) == ("another", False)


def test_a_fence_that_cannot_be_read_forbids(tmp_path: Path) -> None:
    fence = Fence(tmp_path)
    (tmp_path / f"{VM}.json").write_text("{")
    found = fence.find(VM)
    assert found is not None
    assert not found.ask
    assert "cannot be read" in found.reason


def test_a_permit_ends_by_itself_with_its_block_or_with_the_fence(tmp_path: Path) -> None:
    fence, file = Fence(tmp_path), tmp_path / f"{VM}.permit"
    fence.permit_once(VM)
    left = json.loads(file.read_text())["until"] - time.time()
    assert PERMIT_SECONDS - 30 < left <= PERMIT_SECONDS
    fence.allow(VM)
    assert not file.exists()
    with fence.permitted(VM):
        assert file.exists()
    assert not file.exists()
