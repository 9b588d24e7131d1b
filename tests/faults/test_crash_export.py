"""An agent is killed with SIGKILL at any instant of an export or an import: it goes on where it was."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_kit import Patient, kills, running_programs
from job_kit import Blank, inside, same_content

from vmreplica.api.requests import ImportRequest
from vmreplica.cli.client import AgentClient
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Unreachable
from vmreplica.model.export import ExportSeed

pytestmark = pytest.mark.seeding


@pytest.fixture
def usb(unprotected: Patient) -> Iterator[Path]:
    """Choose a directory on a for the export; it is gone afterwards on both hosts."""
    path = unprotected.a.layout.images / "usb-crash"
    yield path
    for host in (unprotected.a, unprotected.b):
        shutil.rmtree(inside(host, host.layout.images / path.name), ignore_errors=True)


@pytest.mark.parametrize(
    ("side", "trap"),
    kills(
        quick=[("a", "Parcel.put:after:3")],
        thorough=[
            ("a", "Place.publish:after"),
            ("a", "Parcel.put:before:2"),
            ("a", "Parcel._checksums:after"),
            ("a", "Parcel.close:after"),
            ("a", "PeerClient.await_base:after"),
            ("b", "Awaiting.accept:after"),
        ],
    ),
)
def test_an_export_goes_on_after_a_kill(unprotected: Patient, filled: Blank, usb: Path, side: str, trap: str) -> None:
    patient, host = unprotected, unprotected.lab.host(side)
    programs, before = running_programs(patient.lab), patient.published()
    patient.set_trap(host, trap)
    patient.enable(ExportSeed(directory=str(usb)))
    patient.wait_trapped(host)
    patient.start_agent(host)
    if trap.startswith("Place"):
        patient.enable(ExportSeed(directory=str(usb)))
    patient.wait_published(before + 1)
    base = patient.points()[0]["point"]
    patient.sync()
    patient.wait_published(before + 2)
    assert {point["waits_for"] for point in patient.points()} == {base}
    assert _import(patient, _carry(patient, usb))["imported"]["was_here"] is False
    _require_sound(patient, filled)
    assert running_programs(patient.lab) == programs


@pytest.mark.parametrize(
    "trap",
    [
        "Awaiting.put:after:2",
        *(
            pytest.param(trap, marks=pytest.mark.slow)
            for trap in (
                "Awaiting.begin:after",
                "Awaiting.put:before",
                "Awaiting.publish:before",
                "publish._finish:after",
                "publish.publish_dir:after",
                "Awaiting._settle:before",
                "Awaiting._settle:after",
            )
        ),
    ],
)
def test_an_import_goes_on_after_a_kill(unprotected: Patient, filled: Blank, usb: Path, trap: str) -> None:
    patient, host = unprotected, unprotected.lab.host("b")
    before = patient.published()
    patient.enable(ExportSeed(directory=str(usb)))
    patient.wait_published(before + 1)
    patient.sync()
    patient.wait_published(before + 2)
    arrived = _carry(patient, usb)
    patient.set_trap(host, trap)
    _import(patient, arrived, trapped=True)
    patient.wait_trapped(host)
    patient.start_agent(host)
    _import(patient, arrived)
    _require_sound(patient, filled)


def _require_sound(patient: Patient, filled: Blank) -> None:
    """Require that every point can be started, and holds what the VM's disks hold."""
    patient.rest()
    assert {point["waits_for"] for point in patient.points()} == {None}
    patient.require_sound_points()
    patient.require_clean()
    for target, copy in zip(filled.images, patient.images(patient.points()[-1]["point"]), strict=True):
        assert same_content(filled.images[target], copy)


def _carry(patient: Patient, usb: Path) -> Path:
    there = patient.b.layout.images / usb.name
    shutil.copytree(inside(patient.a, usb), inside(patient.b, there))
    return there


def _import(patient: Patient, arrived: Path, *, trapped: bool = False) -> dict[str, Any]:
    """Import on b and wait for it; the agent may be killed meanwhile."""
    api = AgentClient(patient.b.layout.agent_socket)
    task: dict[str, Any] = {}

    def done() -> bool:
        path = f"/v1/tasks/{task['id']}"
        task.update(json.loads(api.get(path)))
        return bool(task["done"])

    try:
        task.update(json.loads(api.send("POST", "/v1/imports", ImportRequest(directory=str(arrived)))))
        assert until(done, 120), task
    except Unreachable:
        if not trapped:
            raise
        return task
    assert task["error"] is None, task
    return task
