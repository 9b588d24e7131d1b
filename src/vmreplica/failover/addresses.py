"""New addresses for the interfaces of a guest, as programs that its agent runs. Pure.

The addresses are data of programs that are always the same: nothing of them is read as a program.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vmreplica.model.addresses import AddressPlan

_WINDOWS: Final = "mswindows"

_LINUX_SCRIPT: Final = """\
set -e
mac=$1 addresses=$2 gateways=$3 servers=$4
export PATH="$PATH:/sbin:/usr/sbin:/bin:/usr/bin"
device=
for entry in /sys/class/net/*; do
    if [ -r "$entry/address" ] && [ "$(cat "$entry/address")" = "$mac" ]; then device=${entry##*/}; fi
done
[ -n "$device" ] || { echo "no interface has the address $mac"; exit 1; }
ip link set "$device" up
ip address flush dev "$device" scope global
for address in $addresses; do ip address add "$address" dev "$device"; done
for gateway in $gateways; do
    case "$gateway" in *:*) family=-6 ;; *) family=-4 ;; esac
    ip $family route del default 2> /dev/null || true
    ip $family route add default via "$gateway" dev "$device"
done
[ -n "$servers" ] || exit 0
if command -v resolvectl > /dev/null && resolvectl dns "$device" $servers 2> /dev/null; then exit 0; fi
for server in $servers; do echo "nameserver $server"; done > /etc/resolv.conf
"""

_WINDOWS_SCRIPT: Final = """\
$ErrorActionPreference = 'Stop'
$mac, $addresses, $gateways, $servers = '{mac}', '{addresses}'.Split(' '), '{gateways}', '{servers}'
$adapter = Get-NetAdapter | Where-Object { $_.MacAddress -eq $mac } | Select-Object -First 1
if (-not $adapter) { throw "no interface has the address $mac" }
$index = $adapter.ifIndex
Set-NetIPInterface -InterfaceIndex $index -Dhcp Disabled
Get-NetIPAddress -InterfaceIndex $index -PrefixOrigin Manual, Dhcp -ErrorAction SilentlyContinue |
    Remove-NetIPAddress -Confirm:$false
Get-NetRoute -InterfaceIndex $index -DestinationPrefix '0.0.0.0/0', '::/0' -ErrorAction SilentlyContinue |
    Remove-NetRoute -Confirm:$false
foreach ($entry in $addresses) {
    $address, $prefix = $entry.Split('/')
    New-NetIPAddress -InterfaceIndex $index -IPAddress $address -PrefixLength $prefix | Out-Null
}
foreach ($gateway in $gateways.Split(' ', [StringSplitOptions]::RemoveEmptyEntries)) {
    $all = if ($gateway.Contains(':')) { '::/0' } else { '0.0.0.0/0' }
    New-NetRoute -InterfaceIndex $index -DestinationPrefix $all -NextHop $gateway | Out-Null
}
if ($servers) { Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $servers.Split(' ') }
"""


@dataclass(frozen=True, slots=True)
class GuestProgram:
    """What the agent of a guest runs."""

    path: str
    args: tuple[str, ...]


def program_for(system: str, mac: str, plan: AddressPlan) -> GuestProgram:
    """Make the program that gives an interface its addresses.

    Args:
        system: the guest's operating system, as its agent names it.
        mac: of the interface.
        plan: its addresses; validated, so that they hold digits, letters, dots, colons and slashes only.
    """
    addresses, gateways, servers = (" ".join(part) for part in (plan.addresses, plan.gateways, plan.dns))
    if system != _WINDOWS:
        return GuestProgram("/bin/sh", ("-c", _LINUX_SCRIPT, "vmreplica", mac.lower(), addresses, gateways, servers))
    script = _WINDOWS_SCRIPT
    values = {"mac": mac.upper().replace(":", "-"), "addresses": addresses, "gateways": gateways, "servers": servers}
    for name, value in values.items():
        script = script.replace(f"'{{{name}}}'", f"'{value}'")
    return GuestProgram("powershell.exe", ("-NoProfile", "-NonInteractive", "-Command", script))


def mac_of(key: str, macs: Sequence[str]) -> str | None:
    """Find the interface that a key names: a MAC address, or its number.

    Args:
        key: as a person wrote it.
        macs: of the VM's interfaces, in order.
    """
    known = [mac.lower() for mac in macs]
    if key.isdigit():
        return known[int(key)] if int(key) < len(known) else None
    return key if key in known else None
