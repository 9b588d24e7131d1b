"""What doctor makes of facts: pure judgements, and the catalogue of findings."""

import dataclasses
import datetime as dt
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.agent.doctor.host_facts import DirectoryFacts, SystemFacts, kind_of, version_of
from vmreplica.agent.doctor.judge_host import (
    Needs,
    PeerFacts,
    judge_beside,
    judge_clock,
    judge_directories,
    judge_limits,
    judge_own_certificates,
    judge_peer,
    judge_rights,
)
from vmreplica.agent.doctor.judge_vm import (
    ScratchFacts,
    judge_checkpoints,
    judge_definition,
    judge_disks,
    judge_guest_agent,
    judge_image,
    judge_replica,
    judge_scratch,
    judge_state,
)
from vmreplica.agent.doctor.judge_vms import Leftovers, judge_autostart, judge_domains, judge_leftovers
from vmreplica.agent.doctor.versions import judge_hypervisor, judge_system
from vmreplica.agent.doctor.vm_exam import largest_delta
from vmreplica.agent.doctor.vm_facts import BitmapFacts, ImageFacts, read_chain
from vmreplica.hypervisor import DiskView, DomainView
from vmreplica.hypervisor.examine import DomainLook, HostLook, VmLook, parse_agent_channel, parse_security
from vmreplica.model.findings import CATALOGUE, GROUPS, Finding, Severity, arranged, catalogued, fine, found, worst
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy
from vmreplica.model.report import CycleReport
from vmreplica.model.units import GiB, MiB

pytestmark = pytest.mark.seeding

VM, OTHER = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"
NOW = dt.datetime(2026, 11, 22, 10, 0, tzinfo=dt.UTC)
REPLICA = "ab" * 16
OURS = "vmreplica-abababab-20261122T100000Z-00000001"
STRAY = "vmreplica-cdcdcdcd-20261122T100000Z-00000001"
NEEDS = Needs(min_free=256 * MiB, spool_cap=4 * GiB, scratch_cap=8 * GiB, cycles=2)
STORE = DirectoryFacts(key="store", path=Path("/store"), free=100 * GiB, inodes=10**6, free_inodes=10**6, kind="ext4")
SYSTEM = SystemFacts(
    python=(3, 11, 2), kernel="6.1", libnbd=(1, 14, 2), root=True, open_files=20000, clock_synchronised=True
)
LOOK = HostLook(libvirt=9_000_000, qemu=7_002_022, security=("none", "dac"), qemu_owner=None, backup=True, domains=())
DOMAIN = DomainLook(vm=VM, name="web", active=True, autostart=False, checkpoints=(OURS,), job=None, images=())
PEER = PeerFacts(
    name="beta",
    address="192.0.2.7:7432",
    version="1",
    certificate_expires=NOW + dt.timedelta(days=300),
    ca_expires=NOW + dt.timedelta(days=3000),
    round_trip=0.2,
    clock_ahead=0.1,
    store_free=100 * GiB,
)
DISK = DiskView("vda", "disk", "qcow2", "/images/web.qcow2", GiB, None)
VIEW = DomainView(vm=VM, name="web", active=True, autostart=False, definition="<domain/>", disks=(DISK,))
LOOKED = VmLook(view=VIEW, checkpoints=(OURS,), job=None, busy=None, guest_agent=False)
POLICY = Policy(replica=REPLICA)
IMAGE = ImageFacts(target="vda", path=Path("/images/web.qcow2"), free=100 * GiB)
POSITION = Position(vm=VM, state="replicating", epoch=0, latest=None, incoming=None, free_bytes=100 * GiB)


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings if finding.severity is not Severity.OK}


# --- the catalogue


def test_every_code_of_the_catalogue_belongs_to_a_group_and_says_what_it_means() -> None:
    for code, entry in CATALOGUE.items():
        assert entry.group in GROUPS, code
        assert entry.meaning, code
        assert entry.severity is not Severity.OK, code
        assert entry.remedy or entry.severity is Severity.INFO, f"{code} has no remedy"


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_a_remedy_names_what_it_is_about(code: str) -> None:
    names = {field for _, field, _, _ in string.Formatter().parse(CATALOGUE[code].remedy) if field}
    finding = found(code, "subject", "text", **{name: f"<{name}>" for name in names})
    assert all(f"<{name}>" in finding.remedy for name in names)
    assert catalogued(finding.code)


def test_what_a_remedy_is_filled_with_is_not_filled_in_itself() -> None:
    assert found("vm-paused", "x", "y", vm="{vm}{0}").remedy == "vmreplica resume {vm}{0}"


@given(st.lists(st.sampled_from(sorted(CATALOGUE)), max_size=20))
def test_findings_are_arranged_by_group_with_the_worst_last_and_none_lost(wanted: list[str]) -> None:
    fields = (string.Formatter().parse(entry.remedy) for entry in CATALOGUE.values())
    names = dict.fromkeys((field for parsed in fields for _, field, _, _ in parsed if field), "x")
    findings = [*(found(code, "s", "t", **names) for code in wanted), fine("vm", "s", "t")]
    shown = arranged(findings)
    assert sorted(shown, key=repr) == sorted(findings, key=repr)
    places = [(GROUPS.index(one.group), list(Severity).index(one.severity)) for one in shown]
    assert places == sorted(places)
    assert worst(shown) == max((one.severity for one in shown), key=list(Severity).index)


# --- this host


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"exists": False}, "directory-missing"),
        ({"writable": False}, "directory-not-writable"),
        ({"free": 0}, "space-none"),
        ({"free": NEEDS.min_free - 1}, "space-none"),
        ({"free": NEEDS.min_free}, "space-low"),
        ({"free": 2 * NEEDS.min_free}, None),
        ({"free_inodes": 3}, "inodes-low"),
        ({"inodes": 0, "free_inodes": 0}, None),
        ({"kind": "tmpfs"}, "directory-volatile"),
        ({"key": "spool", "kind": "tmpfs"}, None),
        ({"key": "runtime_dir", "kind": "nfs4"}, "directory-on-network"),
        ({"key": "store", "kind": "nfs4"}, None),
        ({"key": "pki", "mode": 0o750}, "directory-open"),
        ({"key": "pki", "mode": 0o700}, None),
        ({"blocked_at": Path("/srv")}, "directory-not-passable"),
    ],
)
def test_a_directory_is_judged_by_what_is_wrong_with_it(change: dict[str, object], code: str | None) -> None:
    findings = judge_directories([dataclasses.replace(STORE, **change)], NEEDS)  # type: ignore[arg-type]
    assert codes(findings) == ({code} if code else set())
    assert findings, "a good one is told, too"


@given(st.integers(0, 20 * GiB), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_caps_beyond_the_room_beside_images_are_told(free: int, spool: int, scratch: int, images: int) -> None:
    places = [
        dataclasses.replace(STORE, key="spool", free=free, device=spool),
        dataclasses.replace(STORE, key="runtime_dir", free=free, device=scratch),
    ]
    told = codes(judge_beside(places, {images}, NEEDS))
    caps = NEEDS.spool_cap * (spool == images) + NEEDS.scratch_cap * (scratch == images)
    assert bool(told) == (caps > 0 and free < caps + NEEDS.min_free)


@pytest.mark.parametrize(
    ("libvirt", "qemu", "code"),
    [
        (9_000_000, 7_002_022, None),
        (7_005_000, 7_002_000, "version-too-old"),
        (9_000_000, 6_000_000, "version-too-old"),
        (8_000_000, 7_002_000, "version-untested"),
        (11_000_000, 10_001_002, "version-known-bad"),
        (11_000_000, 10_002_000, None),
    ],
)
def test_versions_are_judged_against_minimum_tested_and_known_faults(libvirt: int, qemu: int, code: str | None) -> None:
    found_codes = codes(judge_hypervisor(dataclasses.replace(LOOK, libvirt=libvirt, qemu=qemu)))
    assert found_codes == ({code} if code else set())


def test_a_libvirt_without_backup_jobs_and_an_old_libnbd_are_told() -> None:
    assert codes(judge_hypervisor(dataclasses.replace(LOOK, backup=False))) == {"backup-unsupported"}
    assert codes(judge_hypervisor(dataclasses.replace(LOOK, backup=None))) == set()
    old = dataclasses.replace(SYSTEM, libnbd=(1, 4, 0))
    assert codes(judge_system(old)) == {"version-too-old", "version-known-bad"}


def test_rights_clock_and_limits_are_judged() -> None:
    confined = dataclasses.replace(LOOK, security=("apparmor", "dac"))
    assert codes(judge_rights(SYSTEM, confined, Path("/var/lib/libvirt/vmreplica"))) == set()
    assert codes(judge_rights(SYSTEM, confined, Path("/srv/run"))) == {"confined-outside"}
    assert codes(judge_rights(dataclasses.replace(SYSTEM, root=False), None, Path("/srv"))) == {"not-root"}
    assert codes(judge_clock(dataclasses.replace(SYSTEM, clock_synchronised=False))) == {"clock-not-synchronised"}
    assert codes(judge_clock(dataclasses.replace(SYSTEM, clock_synchronised=None))) == set()
    assert codes(judge_limits(dataclasses.replace(SYSTEM, open_files=256), NEEDS)) == {"open-files-low"}
    assert codes(judge_limits(dataclasses.replace(SYSTEM, open_files=-1), NEEDS)) == set(), "no limit"


@pytest.mark.parametrize(("days", "code"), [(-1, "certificate-expired"), (29, "certificate-expires"), (31, None)])
def test_certificates_are_judged_by_the_days_left(days: int, code: str | None) -> None:
    ends, later = NOW + dt.timedelta(days=days), NOW + dt.timedelta(days=900)
    wanted = {code} if code else set()
    assert codes(judge_own_certificates(ends, later, NOW)) == wanted
    assert codes(judge_own_certificates(later, ends, NOW)) == wanted
    assert codes(judge_peer(dataclasses.replace(PEER, ca_expires=ends), "1", NOW)) == wanted


@given(st.floats(-1e6, 1e6), st.floats(0, 60))
def test_a_clock_differs_only_when_the_round_trip_cannot_explain_it(ahead: float, trip: float) -> None:
    findings = judge_peer(dataclasses.replace(PEER, clock_ahead=ahead, round_trip=trip), "1", NOW)
    assert ("clock-differs" in codes(findings)) == (abs(ahead) - trip / 2 > 5)


def test_a_peer_of_another_version_or_with_little_room_is_told() -> None:
    assert codes(judge_peer(PEER, "1", NOW)) == set()
    assert codes(judge_peer(PEER, "2", NOW)) == {"peer-version-differs"}
    assert codes(judge_peer(dataclasses.replace(PEER, store_free=GiB), "1", NOW)) == {"peer-store-low"}


def test_autostart_counts_for_protected_vms_only() -> None:
    starting = dataclasses.replace(DOMAIN, autostart=True)
    assert codes(judge_autostart([starting], {VM})) == {"autostart-on"}
    assert judge_autostart([starting], {OTHER}) == []
    assert codes(judge_autostart([DOMAIN], {VM})) == set()


def test_only_jobs_and_checkpoints_of_ours_without_a_relationship_are_left_over() -> None:
    domain = dataclasses.replace(DOMAIN, checkpoints=(OURS, STRAY, "virtnbdbackup.0"), job="ours")
    (left,) = judge_domains([domain], {VM: REPLICA}, ())
    assert (left.code, STRAY in left.text) == ("checkpoint-left", True)
    assert codes(judge_domains([domain], {}, ())) == {"checkpoint-left", "job-left"}
    assert codes(judge_domains([domain], {}, {OURS, STRAY})) == set(), "a trial under way"
    assert codes(judge_domains([dataclasses.replace(domain, job="foreign", checkpoints=())], {}, ())) == set()


def test_files_of_vms_that_are_not_protected_are_left_over() -> None:
    left = Leftovers(
        scratch={VM: Path("/s/1")},
        spool={VM: Path("/p/1")},
        fingerprints={VM: Path("/f/1")},
        checkpoints={VM: [Path(f"/c/{OURS}.xml")]},
        run_layers={"db": Path("/l")},
    )
    everything = {"scratch-left", "spool-left", "state-left", "run-layer-left"}
    assert codes(judge_leftovers(left, [], (), ())) == everything
    assert codes(judge_leftovers(left, [DOMAIN], (), ())) == {*everything, "bitmaps-left"}
    assert codes(judge_leftovers(left, [], {VM}, ())) == {"scratch-left", "run-layer-left"}
    assert codes(judge_leftovers(left, [dataclasses.replace(DOMAIN, job="ours")], {VM}, ())) == {"run-layer-left"}
    assert codes(judge_leftovers(left, [], {VM}, {VM})) == {"run-layer-left"}


# --- one VM


def test_a_vm_s_state_is_told() -> None:
    failed = CycleReport(
        kind="delta",
        point=None,
        reason="interval",
        started=NOW,
        seconds=1,
        outcome="failed",
        error="no",
        error_code="x",
    )
    off = dataclasses.replace(LOOKED, view=dataclasses.replace(VIEW, active=False))
    assert codes(judge_state(LOOKED, POLICY, None)) == set()
    assert codes(judge_state(LOOKED, None, None)) == {"vm-not-protected"}
    assert codes(judge_state(off, POLICY.model_copy(update={"paused": True}), failed)) == {
        "vm-off", "vm-paused", "cycle-failed",
    }  # fmt: skip


def test_what_the_replica_says_is_told() -> None:
    assert codes(judge_replica("web", "beta", POLICY, POSITION, GiB)) == set()
    assert codes(judge_replica("web", "beta", POLICY, POSITION, 200 * GiB)) == {"replica-room"}
    ahead = POSITION.model_copy(update={"epoch": 1, "complaints": ("the store is nearly full",)})
    assert codes(judge_replica("web", "beta", POLICY, ahead, GiB)) == {"failed-over-elsewhere", "replica-complains"}


def test_each_disk_is_judged_by_why_it_cannot_be_replicated() -> None:
    shared = dataclasses.replace(DISK, target="vdb", reason_ineligible="shareable")
    raw = dataclasses.replace(DISK, target="vdc", reason_untracked="raw")
    cdrom = dataclasses.replace(DISK, target="sda", device="cdrom", reason_ineligible="a cdrom is not replicated")
    assert codes(judge_disks("web", [DISK, raw, cdrom], ())) == {"disk-untracked", "disk-excluded"}
    assert codes(judge_disks("web", [DISK, shared], ())) == {"disk-not-eligible"}
    assert codes(judge_disks("web", [DISK, shared], ("vdb",))) == {"disk-excluded"}
    assert codes(judge_disks("web", [DISK], ("vda",))) == {"disk-excluded", "no-eligible-disks"}


@pytest.mark.parametrize(
    ("change", "active", "code"),
    [
        ({}, True, None),
        ({"error": "no such file"}, True, "image-unreadable"),
        ({"free": MiB}, True, "image-space-none"),
        ({"free": 100 * MiB}, True, "image-space-low"),
        ({"free": None}, True, None),
        ({"formless": Path("/images/base.qcow2"), "depth": 2}, True, "backing-format-missing"),
        ({"bitmaps": (BitmapFacts(OURS, in_use=True, granularity=65536),)}, False, "bitmap-broken"),
        ({"bitmaps": (BitmapFacts(OURS, in_use=True, granularity=65536),)}, True, None),
        ({"bitmaps": (BitmapFacts("other", in_use=True, granularity=65536),)}, False, "bitmap-broken-foreign"),
        ({"bitmaps": (BitmapFacts("other", in_use=False, granularity=65536),) * 11}, False, "bitmaps-many"),
    ],
)
def test_an_image_is_judged_by_chain_bitmaps_and_room(
    *, change: dict[str, object], active: bool, code: str | None
) -> None:
    findings = judge_image("web", dataclasses.replace(IMAGE, **change), active=active, min_free=NEEDS.min_free)  # type: ignore[arg-type]
    assert codes(findings) == ({code} if code else set())


def test_checkpoints_and_jobs_of_others_are_told() -> None:
    three = dataclasses.replace(LOOKED, checkpoints=(OURS, "a.0", "a.1", "a.2"))
    assert codes(judge_checkpoints(LOOKED)) == set()
    assert codes(judge_checkpoints(three)) == {"checkpoints-foreign"}
    many = dataclasses.replace(LOOKED, checkpoints=tuple(f"a.{n}" for n in range(11)))
    assert codes(judge_checkpoints(many)) == {"checkpoints-foreign", "bitmaps-many"}
    assert codes(judge_checkpoints(dataclasses.replace(LOOKED, job="foreign"))) == {"job-foreign"}
    assert codes(judge_checkpoints(dataclasses.replace(LOOKED, busy="a block job runs"))) == {"job-foreign"}


@given(st.integers(0, GiB), st.integers(0, GiB), st.none() | st.integers(0, GiB))
def test_scratch_is_too_small_when_the_largest_delta_does_not_fit(free: int, least: int, delta: int | None) -> None:
    facts = ScratchFacts(path=Path("/s"), free=free, min_free=least, largest_delta=delta)
    assert bool(codes(judge_scratch(facts))) == (delta is not None and max(0, free - least) < delta)


def test_the_largest_delta_counts_published_deltas_only() -> None:
    report = {"point": None, "reason": "x", "started": NOW, "seconds": 1}
    made = [("initial", "published", 9), ("delta", "failed", 8), ("delta", "published", 5), ("delta", "published", 3)]
    cycles = [CycleReport(kind=k, outcome=o, guest_bytes=n, **report) for k, o, n in made]
    assert largest_delta(cycles) == 5
    assert largest_delta([]) is None


def test_guest_agent_and_definition_are_judged() -> None:
    assert judge_guest_agent("web", "answers", wanted=True).severity is Severity.OK
    assert judge_guest_agent("web", "silent", wanted=True).code == "guest-agent-silent"
    assert judge_guest_agent("web", "absent", wanted=False).code == "guest-agent-absent"
    assert judge_guest_agent("web", "absent", wanted=True).severity is Severity.WARNING
    assert codes(judge_definition("web", ["left out: metadata"])) == set()
    assert codes(judge_definition("web", ["left out: a hostdev"])) == {"definition-changed"}


# --- reading


def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount_the_last_one_winning() -> None:
    mounts = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:26 / /srv rw - nfs4 nas:/srv rw
31 30 0:27 / /srv/a\\040b rw - tmpfs none rw
32 30 0:28 / /srv/a\\040b rw - xfs /dev/sdb rw
broken
"""
    assert kind_of(mounts, Path("/var/lib")) == "ext4"
    assert kind_of(mounts, Path("/srv/store")) == "nfs4"
    assert kind_of(mounts, Path("/srv/a b/c")) == "xfs"
    assert kind_of(mounts, Path("/srvx")) == "ext4"


@given(st.text(max_size=30))
def test_any_text_is_read_as_some_version(text: str) -> None:
    assert len(version_of(text)) == 3


def test_versions_are_read() -> None:
    assert version_of("1.14.2") == (1, 14, 2)
    assert version_of("3.13.0rc1") == (3, 13, 0)
    assert version_of("7") == (7, 0, 0)


def test_security_models_and_the_guest_agent_s_channel_are_read_from_libvirt_s_documents() -> None:
    capabilities = (
        "<capabilities><host><secmodel><model>apparmor</model></secmodel><secmodel><model>dac</model>"
        "<baselabel type='kvm'>+64055:+108</baselabel></secmodel></host></capabilities>"
    )
    assert parse_security(capabilities) == (("apparmor", "dac"), (64055, 108))
    assert parse_security("<capabilities/>") == ((), None)
    channel = "<domain><devices><channel><target name='{}' state='{}'/></channel></devices></domain>"
    assert parse_agent_channel(channel.format("org.qemu.guest_agent.0", "connected"))
    assert not parse_agent_channel(channel.format("org.qemu.guest_agent.0", "disconnected"))
    assert not parse_agent_channel(channel.format("com.redhat.spice.0", "connected"))


def test_a_chain_is_read_with_its_bitmaps() -> None:
    top = {
        "backing-filename": "base.qcow2",
        "filename": "/images/top.qcow2",
        "format-specific": {"data": {"bitmaps": [{"name": "b", "flags": ["in-use", "auto"], "granularity": 65536}]}},
    }
    facts = read_chain("vda", Path("/images/top.qcow2"), [top, {"filename": "/images/base.qcow2"}], 5)
    assert facts.bitmaps == (BitmapFacts("b", in_use=True, granularity=65536),)
    assert (facts.depth, facts.formless, facts.free) == (2, Path("/images/top.qcow2"), 5)
