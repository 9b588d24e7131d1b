"""Machine, firmware and processor of a rebuilt definition: the nearest that this host can run. Pure."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Final

from vmreplica.hypervisor.definition_rules import NUM, TOPOLOGY, WORD, YES, Rule, copy_into, matches
from vmreplica.hypervisor.definition_site import Site, offers
from vmreplica.hypervisor.firmware import fitting
from vmreplica.model.errors import BadRequest, Refused

#: By the beginning of a versioned machine type, the alias that stands for the newest of its family.
_FAMILIES: Final = {
    "pc-q35-": "q35", "ubuntu-q35": "q35", "pc-i440fx-": "pc", "ubuntu": "pc", "virt-": "virt", "pseries-": "pseries",
    "s390-ccw-virtio-": "s390-ccw-virtio",
}  # fmt: skip
_OS: Final = {
    "bootmenu": Rule({"enable": YES, "timeout": NUM}),
    "bios": Rule({"useserial": YES, "rebootTimeout": r"-?\d{1,6}"}),
    "smbios": Rule({"mode": "emulate|sysinfo"}),
}
_FROM_HOST: Final = frozenset({"kernel", "initrd", "cmdline", "dtb", "init", "initarg", "initenv", "initdir", "acpi"})
_FIRMWARE_FEATURES: Final = "secure-boot|enrolled-keys"
_ONLY_KVM: Final = ("kvm", "hyperv")
_KVM_TIMERS: Final = frozenset({"kvmclock", "hypervclock", "armvtimer"})
#: What a feature of a named CPU model becomes: never a reason not to start.
_POLICIES: Final = {"force": "optional", "require": "optional", "optional": "optional"}


def build_os(source: ET.Element, site: Site, *, per_device_boot: bool) -> ET.Element:
    """Build ``<os>``: hardware guests only, firmware chosen by this host's libvirt, no files of any host."""
    result = ET.Element("os")
    result.append(_type(source, site))
    _firmware(result, source, site)
    for child in source:
        if child.tag in _OS:
            copy_into(result, child, _OS[child.tag], site.drop, f"os/{child.tag}")
        elif child.tag == "boot":
            _boot(result, child, site, per_device_boot=per_device_boot)
        elif child.tag in _FROM_HOST:
            site.drop(f"os/{child.tag}: the VM boots from its own disks")
        elif child.tag not in {"type", "loader", "nvram", "firmware"}:
            site.drop(f"os/{child.tag}")
    return result


def _type(source: ET.Element, site: Site) -> ET.Element:
    kind = source.find("type")
    if kind is None or (kind.text or "").strip() != "hvm":
        raise BadRequest("definition-not-hvm", "the VM's definition from the primary is not of a hardware guest (hvm)")
    result = ET.Element("type")
    result.text = "hvm"
    if matches(WORD, kind.get("arch")):
        result.set("arch", kind.get("arch", ""))
    result.set("machine", _machine(kind.get("machine", "pc"), site))
    return result


def _machine(machine: str, site: Site) -> str:
    if matches(WORD, machine):
        if offers(site.machines, machine):
            return machine
        alias = next((alias for prefix, alias in _FAMILIES.items() if machine.startswith(prefix)), None)
        if alias is not None and offers(site.machines, alias):
            site.note(f"machine: this host does not know {machine}, its newest {alias} is used")
            return alias
    raise Refused(
        "definition-machine-unknown",
        f"this host's QEMU has no machine type {machine[:64]!r}",
        hint="qemu-system-x86_64 -machine help lists them; install a QEMU for the VM's architecture",
    )


def _firmware(result: ET.Element, source: ET.Element, site: Site) -> None:
    loader = source.find("loader")
    if source.get("firmware") != "efi" and (loader is None or loader.get("type") != "pflash"):
        if loader is not None:
            site.drop("os/loader: this host's own BIOS is used")
        return
    if not site.efi:
        raise Refused(
            "definition-needs-efi",
            "the VM needs UEFI firmware, which this host's libvirt does not find",
            hint="apt install ovmf, then try again",
        )
    if loader is not None:
        site.note("firmware: this host's own UEFI image is used")
    features = _firmware_features(source, loader)
    if site.nvram is not None and _own_variables(result, _secure(source, loader), site.nvram, site):
        return
    result.set("firmware", "efi")
    if site.nvram is None:
        site.note("firmware: the point has no UEFI variables, the firmware begins with its defaults")
    if features:
        ET.SubElement(result, "firmware").extend(features)


def _own_variables(result: ET.Element, secure: bool | None, nvram: Path, site: Site) -> bool:
    """Let a firmware of this host begin with the VM's own variables; False when none has room for just these."""
    kind = result.find("type")
    machine, arch = (kind.get("machine", ""), kind.get("arch", "x86_64")) if kind is not None else ("", "")
    firmware = fitting(site.firmwares, size=site.nvram_size, secure=secure, machine=machine, arch=arch)
    if firmware is None:
        site.note(
            f"firmware: no UEFI firmware here for {machine}{' with secure boot' if secure else ''} keeps variables of "
            f"{site.nvram_size} bytes: it begins with its defaults; install the primary's version of ovmf (edk2)"
        )
        return False
    loader = ET.SubElement(result, "loader", readonly="yes", type="pflash", secure="yes" if firmware.secure else "no")
    loader.text = firmware.code
    ET.SubElement(result, "nvram", template=firmware.template).text = str(nvram)
    return True


def _secure(source: ET.Element, loader: ET.Element | None) -> bool | None:
    """Tell whether the VM boots securely; None when its definition leaves that to the host."""
    if loader is not None:
        return loader.get("secure") == "yes"
    feature = source.find("firmware/feature[@name='secure-boot']")
    return None if feature is None else feature.get("enabled") == "yes"


def require_smm(root: ET.Element) -> None:
    """Switch on what secure boot needs; libvirt does it by itself only where it chooses the firmware."""
    if root.find("os/loader[@secure='yes']") is None:
        return
    features = root.find("features")
    if features is None:
        features = ET.SubElement(root, "features")
    smm = features.find("smm")
    if smm is None:
        smm = ET.SubElement(features, "smm")
    smm.set("state", "on")


def _firmware_features(source: ET.Element, loader: ET.Element | None) -> list[ET.Element]:
    asked = [
        ET.Element("feature", enabled=feature.get("enabled", "no"), name=feature.get("name", ""))
        for feature in source.iterfind("firmware/feature")
        if matches(_FIRMWARE_FEATURES, feature.get("name")) and matches(YES, feature.get("enabled"))
    ]
    if not asked and loader is not None and loader.get("secure") == "yes":
        asked = [ET.Element("feature", enabled="yes", name="secure-boot")]
    return asked


def _boot(result: ET.Element, boot: ET.Element, site: Site, *, per_device_boot: bool) -> None:
    device = boot.get("dev", "")
    if device in {"hd", "network"} and not per_device_boot:
        ET.SubElement(result, "boot", dev=device)
    elif device not in {"hd", "network"}:
        site.drop(f"os/boot: {device}")


def build_cpu(source: ET.Element | None, site: Site) -> ET.Element:
    """Build ``<cpu>``: the same where it runs here, else the best this host has."""
    result = ET.Element("cpu")
    if source is None:
        return result
    mode, model = source.get("mode", "custom"), source.find("model")
    if mode == "custom" and model is not None:
        _named_model(result, source, (model.text or "").strip(), site)
    elif mode in {"host-passthrough", "host-model", "maximum"}:
        _host_cpu(result, mode, site)
    topology = source.find("topology")
    if topology is not None:
        copy_into(result, topology, TOPOLOGY, site.drop, "cpu/topology")
    for tag in ("numa", "cache", "maxphysaddr"):
        if source.find(tag) is not None:
            site.drop(f"cpu/{tag}")
    return result


def _host_cpu(result: ET.Element, mode: str, site: Site) -> None:
    if site.domain_type == "kvm":
        result.set("mode", mode)
        if mode != "host-model":
            site.note(f"cpu: {mode}: the guest finds this host's own processor, which may differ from the primary's")
        return
    site.note(f"cpu: {mode} needs KVM, which does not work here; the best emulated processor is used")
    result.set("mode", "maximum")


def _named_model(result: ET.Element, source: ET.Element, model: str, site: Site) -> None:
    if not matches(WORD, model) or not offers(site.cpu_models, model):
        site.note(f"cpu: model {model} does not run on this host; its own model is used")
        _host_cpu(result, "host-model", site)
        return
    result.attrib.update(mode="custom", match="exact", check="none")
    ET.SubElement(result, "model", fallback="allow").text = model
    for feature in source.iterfind("feature"):
        if matches(WORD, feature.get("name")):
            policy = _POLICIES.get(feature.get("policy", "require"), "disable")
            ET.SubElement(result, "feature", policy=policy, name=feature.get("name", ""))


def without_kvm_parts(root: ET.Element, site: Site) -> None:
    """Remove what only works with KVM from an emulated guest."""
    features, clock = root.find("features"), root.find("clock")
    for tag in _ONLY_KVM:
        part = features.find(tag) if features is not None else None
        if features is not None and part is not None:
            features.remove(part)
            site.drop(f"features/{tag}: it needs KVM")
    for timer in clock.findall("timer") if clock is not None else ():
        if clock is not None and timer.get("name") in _KVM_TIMERS:
            clock.remove(timer)
            site.drop(f"clock/timer {timer.get('name')}: it needs KVM")
