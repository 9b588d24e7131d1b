"""The examination of this host by its agent: what needs peers, relationships and the repository."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from vmreplica import __version__
from vmreplica.agent.config import Config
from vmreplica.agent.doctor.judge_host import PeerFacts, judge_own_certificates, judge_peer
from vmreplica.agent.doctor.judge_vms import judge_autostart, judge_domains, judge_leftovers
from vmreplica.agent.doctor.leftovers import find_leftovers
from vmreplica.agent.doctor.probing import Probe
from vmreplica.agent.doctor.trial import Trials
from vmreplica.agent.journal import Journal
from vmreplica.agent.quiescing import Quiescer
from vmreplica.agent.runner import Runner
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.examine import HostLook
from vmreplica.model.errors import TimedOut, Unreachable, VmReplicaError
from vmreplica.model.findings import Finding, found
from vmreplica.model.ids import HostId, VmId
from vmreplica.peer.book import Peer, PeerBook
from vmreplica.peer.certificates import ca_expiry
from vmreplica.peer.client import PeerClient
from vmreplica.peer.identity import Identity
from vmreplica.repository import Repository

#: Seconds for a peer to take a connection, and to answer.
_CONNECT, _ANSWER = 4.0, 8.0
#: Peers beyond this are not asked: `vmreplica peer test` asks any one.
_MAX_PEERS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What of the agent an examination looks at."""

    config: Config
    identity: Identity
    book: PeerBook
    hypervisor: Hypervisor
    runner: Runner
    journal: Journal
    repository: Repository
    trials: Trials
    quiescer: Quiescer


def host_probes(parts: Parts, look: HostLook | None) -> dict[str, Probe]:
    """List what the agent looks at."""
    probes: dict[str, Probe] = {"own certificates": partial(_certificates, parts.identity)}
    peers = parts.book.all()
    for peer in peers[:_MAX_PEERS]:
        probes[f"peer {peer.name}"] = partial(_peer, parts.identity, peer)
    if not peers:
        probes["peers"] = partial(list, [found("no-peers", "peers", "there is none")])
    probes["store"] = partial(_damaged, parts.repository)
    if look is not None:
        probes["VMs"] = partial(_domains, parts, look)
    return probes


def peer_silent(name: str, error: VmReplicaError) -> Finding:
    """Say that a peer cannot be asked, and whether it answers at all."""
    if isinstance(error, Unreachable | TimedOut):
        return found("peer-unreachable", name, error.message, peer=name)
    return found("peer-refuses", name, f"{error.message} ({error.code})", hint=error.hint)


def _certificates(identity: Identity) -> list[Finding]:
    return judge_own_certificates(identity.leaf_ends, identity.ca_ends, dt.datetime.now(dt.UTC))


def _peer(identity: Identity, peer: Peer) -> list[Finding]:
    """Greet a peer over a new connection: one kept from before the trouble would wait for its long limits."""
    try:
        with PeerClient(identity, peer, connect_timeout=_CONNECT, read_timeout=_ANSWER) as client:
            greeting = client.greet()
            ca_expires = ca_expiry(peer.ca_pem)
    except VmReplicaError as error:
        return [peer_silent(peer.name, error)]
    facts = PeerFacts(
        name=peer.name,
        address=greeting.address,
        version=greeting.hello.version,
        certificate_expires=greeting.certificate_expires,
        ca_expires=ca_expires,
        round_trip=greeting.round_trip,
        clock_ahead=greeting.clock_ahead,
        store_free=greeting.hello.free_bytes,
    )
    return judge_peer(facts, __version__, dt.datetime.now(dt.UTC))


def _damaged(repository: Repository) -> list[Finding]:
    return [
        found("replica-damaged", str(repository.store / name), f"{error.message} ({error.code})", hint=error.hint)
        for name, error in sorted(repository.damaged.items())
    ]


def _domains(parts: Parts, look: HostLook) -> list[Finding]:
    policies, broken = parts.hypervisor.policy_survey()
    replicas: Mapping[VmId, HostId] = {vm: policy.replica for vm, policy in policies.items()}
    # What cannot be read may still be a relationship: nothing of it is called a leftover.
    known = {*replicas, *broken}
    busy = set(parts.runner.each(lambda rel, _now: rel.vm if rel.running else ""))
    names = {domain.vm: domain.name for domain in look.domains}
    trials = parts.trials.checkpoints()
    return [
        *(found("policy-unreadable", names.get(vm, vm), e.message, hint=e.hint) for vm, e in sorted(broken.items())),
        *judge_autostart(look.domains, known),
        *judge_domains([one for one in look.domains if one.vm not in broken], replicas, trials),
        *judge_leftovers(find_leftovers(parts.config, parts.repository), look.domains, known, busy),
    ]
