"""What the fault tests stand on: the session's lab, and VMs in it that live as long as a module.

- ``filled``: a VM without an operating system whose first disk takes several segments; its content never changes.
- ``writer``: a guest with two disks that writes records all the time.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kit import Patient
from job_kit import Blank, qemu_img

from vmreplica.lab import Guest, GuestSpec, Lab, fill_with_system_files
from vmreplica.model.units import MiB

_FILL = 96 * MiB


@pytest.fixture(scope="module")
def filled(session_lab: Lab) -> Iterator[Blank]:
    vm = Blank(session_lab.host("a"), "filled", disks=("vda", "vdb"))
    with tempfile.NamedTemporaryFile(dir=session_lab.dir, suffix=".raw") as raw:
        raw.truncate(2 * _FILL)
        fill_with_system_files(Path(raw.name), _FILL // 2, _FILL)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", raw.name, str(vm.images["vda"]))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 90 1M 3M", str(vm.images["vdb"])], check=True)
    vm.start()
    yield vm
    vm.remove()


@pytest.fixture(scope="module")
def writer(session_lab: Lab) -> Iterator[Guest]:
    guest = session_lab.host("a").add_guest(GuestSpec(name="writer", disks=2, interval_ms=50))
    guest.wait_booted()
    yield guest
    guest.remove()


@pytest.fixture
def unprotected(lab: Lab, filled: Blank) -> Iterator[Patient]:
    """Yield the VM that never changes, not protected yet."""
    yield from _attended(Patient(lab, filled.name, filled.uuid))


@pytest.fixture(scope="module")
def protected_writer(session_lab: Lab, writer: Guest) -> Iterator[Patient]:
    patient = Patient(session_lab, writer.name, writer.uuid)
    patient.enable()
    patient.wait_published(1)
    yield from _attended(patient)


@pytest.fixture
def resting(lab: Lab, protected_writer: Patient) -> Patient:
    """Give the guest that writes, protected, and no cycle under way."""
    assert lab is protected_writer.lab
    protected_writer.resume()
    protected_writer.wait_published(protected_writer.published() + 1)
    protected_writer.rest()
    return protected_writer


def _attended(patient: Patient) -> Iterator[Patient]:
    yield patient
    patient.lab.restore()
    if patient.is_protected():
        patient.disable()
    for host in (patient.a, patient.b):
        host.stop_agent()  # the tapped one: whoever needs agents starts the lab's own
    patient.lab.restore()
