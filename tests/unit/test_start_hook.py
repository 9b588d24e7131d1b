"""libvirt's hook as libvirt runs it: a program of its own, before an API on a real socket."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_kit import SmallAgent, serving

from vmreplica.agent.config import Config
from vmreplica.agent.doctor.judge_hook import judge_hook
from vmreplica.agent.hooks import hook_for
from vmreplica.hypervisor.fence import Fence
from vmreplica.hypervisor.hook_text import HookFate, hook_fate, hook_text, install_hook
from vmreplica.model.errors import NotFound, VmReplicaError

pytestmark = pytest.mark.failover

VM = "4dea22b3-1d52-4dc8-8c9c-9bc0bb4a1b2c"
POLICY = "<vmreplica:policy xmlns:vmreplica='urn:vmreplica:policy:1'>{\"a\": 1}</vmreplica:policy>"


class Hook:
    """An installed hook."""

    def __init__(self, base: Path) -> None:
        (base / "libvirt").mkdir()
        self.fence = Fence(base / "state" / "fence")
        self.store = base / "store"
        self.socket = base / "agent.sock"
        text = hook_text(fences=self.fence.directory, store=self.store, socket=self.socket)
        self.path, _ = install_hook(text, base / "libvirt" / "hooks" / "qemu.d")

    def __call__(self, operation: str = "prepare", *, name: str = "web", protected: bool = True) -> str | None:
        """Run it; gives what it says when it refuses."""
        metadata = f"<metadata>{POLICY}</metadata>" if protected else ""
        xml = f"<domain type='kvm'><name>{name}</name><uuid>{VM}</uuid>{metadata}</domain>"
        argv = [str(self.path), name, operation, "begin", "-"]
        done = subprocess.run(argv, input=xml, capture_output=True, text=True, timeout=60, check=False)
        assert not done.stdout, "what a hook prints may become a VM's definition"
        assert (done.returncode == 0) == (not done.stderr), done
        return done.stderr or None

    def hold(self, state: str) -> None:
        """Let this host hold the VM's replica."""
        (self.store / VM).mkdir(parents=True, exist_ok=True)
        (self.store / VM / "replica.json").write_text(json.dumps({"state": state}))


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


@pytest.fixture
def agent(hook: Hook) -> Iterator[SmallAgent]:
    small = SmallAgent()
    with serving(small, hook.socket):
        yield small


def test_vms_that_are_not_ours_and_all_but_starts_need_no_agent(hook: Hook) -> None:
    began = time.monotonic()
    assert hook(protected=False) is None
    for operation in ("start", "started", "stopped", "release", "reconnect", "attach", "restore"):
        assert hook(operation) is None, "a hook that fails at a reconnection kills the VM"
    assert time.monotonic() - began < 4, "nobody was waited for"


def test_the_agent_is_asked_with_the_very_policy_that_is_started(hook: Hook, agent: SmallAgent) -> None:
    assert hook() is None
    assert agent.asked == [("may-start", VM, "web", '{"a": 1}')]
    assert "vmreplica does not let db start: it lives on beta" in (hook(name="db") or "")


def test_without_an_agent_a_protected_vm_does_not_start_and_the_word_that_helps_is_named(hook: Hook) -> None:
    said = hook() or ""
    assert "cannot be asked" in said
    assert "vmreplica start web --i-am-sure" in said


def test_a_permit_is_good_for_one_start_and_not_for_ever(hook: Hook, agent: SmallAgent) -> None:
    hook.fence.forbid(VM, "it lives on beta; see there")
    assert "it lives on beta; see there" in (hook() or "")
    hook.fence.permit_once(VM)
    assert hook() is None
    assert hook() is not None
    hook.fence.permit_once(VM)
    (hook.fence.directory / f"{VM}.permit").write_text(json.dumps({"until": time.time() - 1}))
    assert hook() is not None
    assert not agent.asked, "what a command forbade is not the replica's to allow"


def test_a_fence_that_the_replica_may_lift_is_asked_about(hook: Hook, agent: SmallAgent) -> None:
    hook.fence.forbid(VM, "it was failed over to beta", ask=True)
    assert hook() is None
    assert len(agent.asked) == 1
    assert "it was failed over to beta" in (hook(protected=False) or ""), "without a policy nobody can be asked"


def test_a_migration_that_arrives_is_no_start_but_the_next_start_is(hook: Hook) -> None:
    hook.fence.forbid(VM, "it lives on beta")
    assert hook("migrate") is None
    assert hook() is None
    assert hook() is not None


@pytest.mark.parametrize(
    ("state", "starts"),
    [("replicating", False), ("paused", False), ("waiting-for-initial", False), ("reversing", False),
     ("failing-over", True), ("failed-over", True), ("committing-failover", True), ("committed", True)],
)  # fmt: skip
def test_the_vm_of_a_replica_starts_here_only_when_it_was_failed_over(hook: Hook, state: str, starts: bool) -> None:
    hook.hold(state)
    hook.fence.forbid(VM, "an older fence says less than the replica's record")
    said = hook(protected=False)
    assert (said is None) == starts
    assert starts or "vmreplica failover" in (said or "")


def test_an_answer_that_is_no_answer_is_a_no(hook: Hook, agent: SmallAgent) -> None:
    agent.error = VmReplicaError("broken", "the journal is broken")
    assert "the journal is broken" in (hook() or "")
    agent.error = RuntimeError("x")
    assert "a defect" in (hook() or "")


def test_what_became_of_an_installed_hook_is_seen(tmp_path: Path, hook: Hook) -> None:
    text, directory = hook.path.read_text(), hook.path.parent
    assert hook_fate(text, directory) == "installed"
    assert install_hook(text, directory) == (hook.path, False)
    hook.path.chmod(0o644)
    assert hook_fate(text, directory) == "not-executable"
    assert hook_fate(f"{text}\n", directory) == "not-executable"
    hook.path.chmod(0o755)
    assert hook_fate(f"{text}\n", directory) == "differs"
    assert install_hook(f"{text}\n", directory) == (hook.path, True)
    hook.path.unlink()
    assert hook_fate(text, directory) == "missing"
    with pytest.raises(NotFound, match="keeps its configuration elsewhere"):
        install_hook(text, tmp_path / "nowhere" / "hooks" / "qemu.d")


def test_each_fate_of_the_hook_is_told_with_a_remedy() -> None:
    fates: tuple[HookFate, ...] = ("installed", "missing", "not-executable", "differs")
    told = [judge_hook(fate, "/etc/libvirt/hooks/qemu.d/vmreplica") for fate in fates]
    assert [one.severity for one in told] == ["ok", "warning", "warning", "warning"]
    assert all(one.remedy for one in told[1:])


@pytest.mark.parametrize("store", ["/srv/it's", '/srv/a"b', "/srv/$HOME", "/srv/a\\b", "/srv/`id`"])
def test_a_path_that_a_shell_would_read_is_refused(store: str) -> None:
    with pytest.raises(VmReplicaError, match="cannot carry"):
        hook_for(Config.model_validate({"agent": {"store": store}}))
