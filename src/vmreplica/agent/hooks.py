"""What is done about starts without an agent: libvirt's hook is installed, and a person starts a VM on their word."""

from pathlib import Path
from typing import Final

from vmreplica.agent.config import Config, load_config
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.fence import Fence
from vmreplica.hypervisor.hook_text import HOOKS, hook_text, install_hook
from vmreplica.model.errors import Corrupt
from vmreplica.model.start import HookReport, StartReport

HOOKS_DIR: Final = HOOKS
_WORD: Final = "no agent was asked: a person is sure that it runs nowhere else"


def fence_dir(config: Config) -> Path:
    """Tell where the fences of this host are."""
    return config.agent.state_dir / "fence"


def hook_for(config: Config) -> str:
    """Write the hook for a host with this configuration.

    Raises:
        BadRequest: ``hook-path-unsuitable``.
    """
    return hook_text(fences=fence_dir(config), store=config.agent.store, socket=config.agent.socket)


def install(config: Path, directory: Path = HOOKS_DIR) -> HookReport:
    """Put libvirt's hook in place, or bring it up to date.

    Args:
        config: the agent's configuration; the defaults count when there is none.
        directory: of libvirt's hooks.

    Raises:
        BadRequest: the configuration is wrong, or has a path that the hook cannot carry.
        NotFound: ``libvirt-not-installed``.
        Refused: ``hook-not-writable``.
    """
    path, changed = install_hook(hook_for(load_config(config) if config.exists() else Config()), directory)
    return HookReport(path=str(path), changed=changed)


def start_alone(config: Path, vm: str) -> StartReport:
    """Start a VM on a person's word, with no agent.

    Raises:
        NotFound: ``vm-unknown``.
        VmReplicaError: libvirt does not answer, or refuses.
    """
    agent = load_config(config).agent
    hypervisor = Hypervisor(agent.libvirt_uri, agent.runtime_dir, agent.state_dir)
    fence = Fence(fence_dir(load_config(config)))
    try:
        brief = hypervisor.find(vm)
        started = not brief.active
        if started:
            with fence.permitted(brief.vm):
                hypervisor.start(brief.vm)
            forget_if_unprotected(hypervisor, fence, brief.vm)
    finally:
        hypervisor.close()
    return StartReport(vm=brief.vm, name=brief.name, started=started, running=True, allowed=True, reason=_WORD)


def forget_if_unprotected(hypervisor: Hypervisor, fence: Fence, vm: str) -> None:
    """Lift the fence of a VM without a policy for good: no replica could do that any more, and a person has decided."""
    try:
        unprotected = hypervisor.policy(vm) is None
    except Corrupt:
        return
    if unprotected:
        fence.allow(vm)
