"""The allow-list of domain XML: which elements and attributes of a peer's definition may pass, and with what values.

Data and one function that applies it. Nothing that names a path, a device or a program of a host is in here.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

NUM: Final = r"\d{1,18}"
HEX: Final = r"0x[0-9a-fA-F]{1,16}"
NUM_HEX: Final = f"{NUM}|{HEX}"
WORD: Final = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"
YES: Final = "yes|no"
ON: Final = "on|off"
PRINTABLE: Final = r"[^\x00-\x1f\x7f]{1,255}"
TEXT: Final = r"[^\x00-\x08\x0b-\x1f\x7f]{0,8192}"
UUID: Final = r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}"
MAC: Final = r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}"
_ZONE: Final = r"[A-Za-z][A-Za-z0-9_+-]{0,31}(/[A-Za-z0-9_+-]{1,32}){0,2}"
_UNIT: Final = "b|bytes|KB|k|KiB|MB|M|MiB|GB|G|GiB|TB|T|TiB"

Drop = Callable[[str], None]

#: libvirt's own bookkeeping: made anew on every host, not worth a note.
QUIET: Final = frozenset({"alias", "seclabel", "resource", "emulator", "audio", "acceleration"})


@dataclass(frozen=True, slots=True)
class Rule:
    """What may pass of one element; the regular expressions must match the whole value."""

    attributes: Mapping[str, str] = field(default_factory=dict)
    children: Mapping[str, "Rule"] = field(default_factory=dict)
    text: str | None = None


def matches(pattern: str, value: str | None) -> bool:
    """Tell whether a value is there and matches as a whole."""
    return value is not None and re.fullmatch(pattern, value) is not None


def copy_into(parent: ET.Element, source: ET.Element, rule: Rule, drop: Drop, place: str = "") -> None:
    """Append what the rule lets pass of an element; ``drop`` is told of everything else.

    An element whose text is not acceptable is left out as a whole.
    """
    place = place or source.tag
    text = (source.text or "").strip()
    if rule.text is not None and not matches(rule.text, text):
        drop(place)
        return
    result = ET.SubElement(parent, source.tag)
    result.text = text if rule.text is not None else None
    for name, value in source.attrib.items():
        if matches(rule.attributes.get(name, r"(?!)"), value):
            result.set(name, value)
        else:
            drop(f"{place}: attribute {name}")
    for child in source:
        if child.tag in rule.children:
            copy_into(result, child, rule.children[child.tag], drop, f"{place}/{child.tag}")
        elif child.tag not in QUIET:
            drop(f"{place}/{child.tag}")


def _flag(**attributes: str) -> Rule:
    return Rule({"state": ON, **attributes})


ADDRESS: Final = Rule(
    {
        "type": "pci|drive|virtio-serial|usb|ccid|ccw|isa|spapr-vio|virtio-mmio",
        **dict.fromkeys(("domain", "bus", "slot", "function", "controller", "target", "unit"), NUM_HEX),
        **dict.fromkeys(("iobase", "irq", "reg", "cssid", "ssid", "devno"), NUM_HEX),
        "multifunction": ON,
        "port": r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}",
    }
)
BOOT_ORDER: Final = Rule({"order": r"[1-9]\d{0,3}"})
MEMORY: Final = Rule({"unit": _UNIT}, text=r"[1-9]\d{0,17}")

_HYPERV: Final = (
    "relaxed", "vapic", "vpindex", "runtime", "synic", "reset", "frequencies", "reenlightenment", "tlbflush", "ipi",
    "evmcs", "avic", "emsr_bitmap", "xmm_input",
)  # fmt: skip
FEATURES: Final = Rule(
    children={
        "acpi": Rule(), "pae": Rule(), "privnet": Rule(), "viridian": Rule(),
        "apic": Rule({"eoi": ON}), "hap": _flag(), "pvspinlock": _flag(), "pmu": _flag(), "vmport": _flag(),
        "vmcoreinfo": _flag(), "smm": Rule({"state": ON}, {"tseg": Rule({"unit": _UNIT}, text=NUM)}),
        "ioapic": Rule({"driver": "kvm|qemu"}), "gic": Rule({"version": "2|3|4|host"}), "htm": _flag(),
        "ccf-assist": _flag(), "async-teardown": Rule({"enabled": YES}),
        "kvm": Rule(children={
            "hidden": _flag(), "hint-dedicated": _flag(), "poll-control": _flag(), "pv-ipi": _flag(),
        }),
        "hyperv": Rule({"mode": "custom|passthrough"}, {
            **dict.fromkeys(_HYPERV, _flag()),
            "spinlocks": _flag(retries=NUM), "vendor_id": _flag(value=r"[A-Za-z0-9 ]{1,12}"),
            "stimer": Rule({"state": ON}, {"direct": _flag()}),
        }),
    }
)  # fmt: skip

CLOCK: Final = Rule(
    {
        "offset": "utc|localtime|timezone|variable|absolute", "adjustment": rf"reset|-?{NUM}", "basis": "utc|localtime",
        "timezone": _ZONE, "start": NUM,
    },
    {
        "timer": Rule(
            {"name": WORD, "present": YES, "tickpolicy": WORD, "track": WORD, "frequency": NUM, "mode": WORD},
            {"catchup": Rule(dict.fromkeys(("threshold", "slew", "limit"), NUM))},
        ),
    },
)  # fmt: skip

_ENTRY: Final = Rule(children={"entry": Rule({"name": WORD}, text=PRINTABLE)})

#: Elements of ``<domain>`` that are copied as they are.
TOP: Final[Mapping[str, Rule]] = MappingProxyType({
    "title": Rule(text=PRINTABLE),
    "description": Rule(text=TEXT),
    "memory": MEMORY,
    "currentMemory": MEMORY,
    "vcpu": Rule({"current": NUM, "placement": "static"}, text=NUM),
    "vcpus": Rule(children={
        "vcpu": Rule({"id": NUM, "enabled": YES, "hotpluggable": YES, "order": NUM}),
    }),
    "iothreads": Rule(text=NUM),
    "features": FEATURES,
    "clock": CLOCK,
    "on_poweroff": Rule(text="destroy|restart|preserve|rename-restart"),
    "on_reboot": Rule(text="destroy|restart|preserve|rename-restart"),
    "on_crash": Rule(text="destroy|restart|preserve|rename-restart"),
    "pm": Rule(children={
        "suspend-to-mem": Rule({"enabled": YES}), "suspend-to-disk": Rule({"enabled": YES}),
    }),
    "sysinfo": Rule({"type": "smbios"}, {
        **dict.fromkeys(("bios", "system", "baseBoard", "chassis"), _ENTRY),
        "oemStrings": Rule(children={"entry": Rule(text=PRINTABLE)}),
    }),
})  # fmt: skip

_SLOT: Final = ("chassisNr", "chassis", "port", "busNr", "index")

#: Devices that are copied as they are, because they need nothing of a host.
DEVICES: Final[Mapping[str, Rule]] = MappingProxyType({
    "controller": Rule(
        {"type": "pci|usb|scsi|sata|ide|virtio-serial|fdc|ccid", "index": NUM, "model": WORD, "ports": NUM,
         "vectors": NUM},
        {
            "address": ADDRESS, "model": Rule({"name": WORD}), "master": Rule({"startport": NUM}),
            "target": Rule({"hotplug": ON, **dict.fromkeys(_SLOT, NUM_HEX)}),
            "driver": Rule(dict.fromkeys(("queues", "cmd_per_lun", "max_sectors"), NUM)),
            "pcihole64": Rule({"unit": _UNIT}, text=NUM),
        },
    ),
    "input": Rule({"type": "tablet|mouse|keyboard", "bus": "usb|ps2|virtio", "model": WORD}, {"address": ADDRESS}),
    "hub": Rule({"type": "usb"}, {"address": ADDRESS}),
    "memballoon": Rule(
        {"model": WORD, "autodeflate": ON, "freePageReporting": ON},
        {"address": ADDRESS, "stats": Rule({"period": NUM})},
    ),
    "panic": Rule({"model": "isa|hyperv|pseries|s390"}, {"address": ADDRESS}),
    "watchdog": Rule(
        {"model": WORD, "action": "reset|shutdown|poweroff|pause|none|inject-nmi"}, {"address": ADDRESS}
    ),
})  # fmt: skip

VIDEO_MODEL: Final = Rule(
    {"type": WORD, "primary": YES, **dict.fromkeys(("vram", "ram", "vgamem", "vram64", "heads"), NUM)}
)
TOPOLOGY: Final = Rule(dict.fromkeys(("sockets", "dies", "clusters", "cores", "threads"), r"[1-9]\d{0,3}"))
RATE: Final = Rule({"bytes": NUM, "period": NUM})
SERIAL_TARGET: Final = Rule({"type": WORD, "port": NUM}, {"model": Rule({"name": WORD})})
