"""Devices of a rebuilt definition: our disks, our networks, displays for this host only. Pure."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Final

from vmreplica.hypervisor.definition_nics import build_interface
from vmreplica.hypervisor.definition_rules import (
    ADDRESS,
    BOOT_ORDER,
    DEVICES,
    NUM,
    PRINTABLE,
    QUIET,
    RATE,
    SERIAL_TARGET,
    VIDEO_MODEL,
    WORD,
    Rule,
    copy_into,
    matches,
)
from vmreplica.hypervisor.definition_site import Site, offers
from vmreplica.model.errors import BadRequest

_BUSES: Final = "virtio|scsi|sata|ide|usb|sd"
_DISK_NAME: Final = "(hd|sd|vd)[a-z]{1,3}"
_DRIVE_BUSES: Final = frozenset({"ide", "sata", "scsi", "usb"})
_DISK_PARTS: Final = {
    "boot": BOOT_ORDER,
    "address": ADDRESS,
    "serial": Rule(text=PRINTABLE),
    "wwn": Rule(text=r"[0-9a-fA-F]{16}"),
    "vendor": Rule(text=r"[\x20-\x7e]{1,8}"),
    "product": Rule(text=r"[\x20-\x7e]{1,16}"),
    "blockio": Rule({"logical_block_size": NUM, "physical_block_size": NUM, "discard_granularity": NUM}),
}
_QUIET_DISK_PARTS: Final = QUIET | {"driver", "source", "target", "backingStore", "mirror"}
_TPM_MODELS: Final = "tpm-tis|tpm-crb|tpm-spapr"
_TPM_VERSIONS: Final = frozenset({"1.2", "2.0"})
_AGENT: Final = "org.qemu.guest_agent.0"
_SPICE_AGENT: Final = "com.redhat.spice.0"
_REASONS: Final = {
    "hostdev": "a device of the primary's hardware",
    "filesystem": "a directory of the primary",
    "redirdev": "USB redirection",
    "shmem": "memory shared with the primary",
    "sound": "nobody listens",
}


def build_devices(source: ET.Element, site: Site) -> ET.Element:
    """Build ``<devices>``.

    Raises:
        BadRequest: a replicated disk is not in the definition (``definition-disk-missing``).
    """
    result = ET.Element("devices")
    for device in source:
        if device.tag in DEVICES:
            copy_into(result, device, DEVICES[device.tag], site.drop)
        elif device.tag in _BUILDERS:
            built = _BUILDERS[device.tag](device, site, result)
            if built is not None:
                result.append(built)
        elif device.tag not in QUIET:
            site.drop(f"{device.tag}{': ' + _REASONS[device.tag] if device.tag in _REASONS else ''}")
    _require_all_disks(result, site)
    _drop_useless_channels(result, site)
    _log_first_serial(result, site)
    return result


def _disk(disk: ET.Element, site: Site, _devices: ET.Element) -> ET.Element | None:
    target = disk.find("target")
    name = target.get("dev", "") if target is not None else ""
    device = disk.get("device", "disk")
    if device == "cdrom" and name not in site.disks:
        return _empty_drive(disk, name, site)
    if device != "disk" or name not in site.disks:
        site.drop(f"{device} {name}" + (": it is not replicated" if device == "disk" else ""))
        return None
    result = ET.Element("disk", type="file", device="disk")
    ET.SubElement(result, "driver", name="qemu", type="qcow2", discard="unmap")
    ET.SubElement(result, "source", file=str(site.disks[name]))
    built = ET.SubElement(result, "target", dev=name)
    if target is not None and matches(_BUSES, target.get("bus")):
        built.set("bus", target.get("bus", ""))
    for child in disk:
        if child.tag in _DISK_PARTS:
            copy_into(result, child, _DISK_PARTS[child.tag], site.drop, f"disk {name}/{child.tag}")
        elif child.tag not in _QUIET_DISK_PARTS:
            site.drop(f"disk {name}/{child.tag}")
    return result


def _empty_drive(drive: ET.Element, name: str, site: Site) -> ET.Element | None:
    """Build a CD-ROM drive without its medium, which is a file of the primary: the guest keeps its drive letters."""
    target = drive.find("target")
    bus = target.get("bus", "") if target is not None else ""
    if not matches(_DISK_NAME, name) or bus not in _DRIVE_BUSES:
        site.drop(f"cdrom {name}")
        return None
    if drive.find("source") is not None:
        site.note(f"cdrom {name}: it is empty here, its medium stays with the primary")
    result = ET.Element("disk", type="file", device="cdrom")
    ET.SubElement(result, "driver", name="qemu", type="raw")
    ET.SubElement(result, "target", dev=name, bus=bus)
    ET.SubElement(result, "readonly")
    for part in ("boot", "address"):
        found = drive.find(part)
        if found is not None:
            copy_into(result, found, _DISK_PARTS[part], site.drop, f"cdrom {name}/{part}")
    return result


def _require_all_disks(devices: ET.Element, site: Site) -> None:
    built = [target.get("dev") for target in devices.iterfind("disk/target")]
    missing = sorted(set(site.disks) - set(built))
    if missing or len(set(built)) != len(built):
        raise BadRequest(
            "definition-disk-missing",
            f"the VM's definition from the primary lacks disk {', '.join(missing)}"
            if missing
            else "the VM's definition from the primary names a disk twice",
            hint="choose an older recovery point",
        )


def _interface(interface: ET.Element, site: Site, _devices: ET.Element) -> ET.Element:
    return build_interface(interface, site)


def _serial(serial: ET.Element, site: Site, _devices: ET.Element) -> ET.Element:
    result = ET.Element(serial.tag, type="pty")
    if serial.get("type", "pty") != "pty" or serial.find("log") is not None:
        site.note(f"{serial.tag}: it is a pseudo terminal here, no file or socket")
    target = serial.find("target")
    if target is not None:
        copy_into(result, target, SERIAL_TARGET, site.drop, f"{serial.tag}/target")
    return result


def _console(console: ET.Element, site: Site, _devices: ET.Element) -> ET.Element | None:
    """Build a console of its own; libvirt adds the one that mirrors the first serial port by itself."""
    target = console.find("target")
    if target is None or target.get("type", "serial") == "serial":
        return None
    return _serial(console, site, _devices)


def _log_first_serial(devices: ET.Element, site: Site) -> None:
    if site.console_log is None:
        return
    serial = devices.find("serial")
    if serial is None:
        serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "log", file=str(site.console_log), append="on")


def _channel(channel: ET.Element, site: Site, _devices: ET.Element) -> ET.Element | None:
    target = channel.find("target")
    name = target.get("name", "") if target is not None else ""
    kind = {_AGENT: "unix", _SPICE_AGENT: "spicevmc"}.get(name)
    if kind is None:
        site.drop(f"channel {name}")
        return None
    result = ET.Element("channel", type=kind)
    ET.SubElement(result, "target", type="virtio", name=name)
    _add_address(result, channel, site)
    return result


def _drop_useless_channels(devices: ET.Element, site: Site) -> None:
    """Leave out SPICE's channel when no SPICE display was built: QEMU would not start."""
    if devices.find("graphics[@type='spice']") is None:
        for channel in devices.findall("channel[@type='spicevmc']"):
            devices.remove(channel)
            site.drop(f"channel {_SPICE_AGENT}")


def _graphics(graphics: ET.Element, site: Site, devices: ET.Element) -> ET.Element | None:
    """Build a display that only this host's own users reach."""
    wanted = graphics.get("type", "")
    kind = wanted if wanted in {"vnc", "spice"} and offers(site.graphics, wanted) else "vnc"
    if not offers(site.graphics, kind) or any(made.get("type") == kind for made in devices.findall("graphics")):
        site.drop(f"graphics {wanted}")
        return None
    site.note(f"graphics: {kind} on 127.0.0.1, without password")
    result = ET.Element("graphics", type=kind, autoport="yes", listen="127.0.0.1")
    ET.SubElement(result, "listen", type="address", address="127.0.0.1")
    if matches(WORD, graphics.get("keymap")):
        result.set("keymap", graphics.get("keymap", ""))
    return result


def _video(video: ET.Element, site: Site, _devices: ET.Element) -> ET.Element | None:
    model = video.find("model")
    kind = model.get("type", "") if model is not None else ""
    if model is None or not matches(WORD, kind):
        site.drop("video")
        return None
    result = ET.Element("video")
    if offers(site.videos, kind):
        copy_into(result, model, VIDEO_MODEL, site.drop, "video/model")
    else:
        site.note(f"video: this host has no {kind}, vga is used")
        ET.SubElement(result, "model", type="vga")
    _add_address(result, video, site)
    return result


def _rng(rng: ET.Element, site: Site, _devices: ET.Element) -> ET.Element:
    result = ET.Element("rng", model="virtio")
    rate = rng.find("rate")
    if rate is not None:
        copy_into(result, rate, RATE, site.drop, "rng/rate")
    ET.SubElement(result, "backend", model="random").text = "/dev/urandom"
    _add_address(result, rng, site)
    return result


def _tpm(tpm: ET.Element, site: Site, _devices: ET.Element) -> ET.Element | None:
    if not offers(site.tpm_backends, "emulator"):
        site.drop("tpm: install swtpm on this host to have one")
        return None
    backend = tpm.find("backend")
    told = backend.get("version") if backend is not None else None
    version = site.tpm or (told if told in _TPM_VERSIONS else "2.0")
    if site.tpm is None:
        site.note("tpm: the point has no state of it, it begins empty: what is sealed by it needs its recovery keys")
    model = tpm.get("model", "")
    result = ET.Element("tpm", model=model if matches(_TPM_MODELS, model) else "tpm-crb")
    ET.SubElement(result, "backend", type="emulator", version=version)
    return result


def _add_address(result: ET.Element, source: ET.Element, site: Site) -> None:
    address = source.find("address")
    if address is not None:
        copy_into(result, address, ADDRESS, site.drop, f"{source.tag}/address")


_BUILDERS: Final[dict[str, Callable[[ET.Element, Site, ET.Element], ET.Element | None]]] = {
    "disk": _disk,
    "interface": _interface,
    "serial": _serial,
    "console": _console,
    "channel": _channel,
    "graphics": _graphics,
    "video": _video,
    "rng": _rng,
    "tpm": _tpm,
}
