# SPDX-License-Identifier: BSD-2-Clause
"""What each key of a guest configuration means: one entry per key that shapes an Arm guest.

``KEYS`` stands in the order in which xl reads them, which decides what error comes first. A key
that is only in ``OTHER_KEYS`` is one xl knows and this package neither reads nor checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Getter(Enum):
    """How a key's value is read."""

    STRING = auto()
    """One value; a list is ignored with a warning."""
    NUMBER = auto()
    """One value, read as C's strtol with base 0; anything else is ignored with a warning."""
    CHOICE = auto()
    """A string out of ``choices``, without regard to case."""
    ACTION = auto()
    """A string out of ``choices``, to the letter."""
    PREFIX = auto()
    """A string that is a beginning of one of ``choices``; the first one it fits."""
    STRINGS = auto()
    """A list, ended without a word by the first element that is itself a list."""
    ALL_STRINGS = auto()
    """A list whose elements must all be strings."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        name: as written in the configuration.
        getter: how its value is read.
        default: what the getters of numbers and words give when the key is absent or ignored.
        choices: words it accepts, for the choosing getters.
        low: smallest number accepted, or None; a bound of this package, where xl has none.
        high: largest number accepted, or None; likewise.
        why: reason for the bounds.
        refusal: xl's message, with ``{}`` for the value (the index, for ALL_STRINGS).
        exit_code: xl's exit code after ``refusal``.
        quiet: xl ignores a list here without a warning.
        fix: what to write instead.
    """

    name: str
    getter: Getter
    default: str | int | None = None
    choices: tuple[str, ...] = ()
    low: int | None = None
    high: int | None = None
    why: str = ""
    refusal: str = ""
    exit_code: int = 1
    quiet: bool = False
    fix: str = ""


_ACTIONS = (
    "destroy",
    "restart",
    "rename-restart",
    "preserve",
    "coredump-destroy",
    "coredump-restart",
    "soft-reset",
)


def _number(name: str, high: int, why: str, low: int | None = 0, default: int | None = None) -> Key:
    return Key(name, Getter.NUMBER, default, low=low, high=high, why=why)


_MEMORY = "MiB; a negative number wraps around in xl, and 2^32 MiB fill a 52-bit address space"
_VCPUS = "Xen on Arm gives a guest at most 128 vCPUs"


def _string(name: str) -> Key:
    return Key(name, Getter.STRING)


def _action(name: str, default: str) -> Key:
    return Key(
        name,
        Getter.ACTION,
        default,
        choices=_ACTIONS,
        refusal=f'Unknown {name} action "{{}}" specified',
        fix="use one of " + ", ".join(_ACTIONS),
    )


def _strings(name: str) -> Key:
    return Key(name, Getter.STRINGS)


def _flag(name: str) -> Key:
    return Key(name, Getter.NUMBER, 0)


KEYS: tuple[Key, ...] = (
    Key(
        "type",
        Getter.PREFIX,
        choices=("hvm", "pv", "pvh"),
        refusal="Invalid domain type {}.",
        fix='use type="pvh", the only one for Arm, or leave the key out',
    ),
    Key(
        "builder",
        Getter.PREFIX,
        choices=("hvm", "generic"),
        refusal="Invalid domain type {}.",
        fix='the key is deprecated; use type="pvh" or leave it out',
    ),
    _string("name"),
    _number("memory", 1 << 32, _MEMORY),
    _number("maxmem", 1 << 32, _MEMORY),
    _number("vcpus", 128, _VCPUS, low=None, default=1),
    _number("maxvcpus", 128, _VCPUS),
    Key(
        "vuart",
        Getter.CHOICE,
        choices=("unknown", "sbsa_uart"),
        refusal='ERROR: invalid value "{}" for "vuart"',
        fix='use vuart="sbsa_uart" or leave the key out',
    ),
    _action("on_poweroff", "destroy"),
    _action("on_reboot", "restart"),
    _action("on_watchdog", "destroy"),
    _action("on_crash", "destroy"),
    _action("on_soft_reset", "soft-reset"),
    _flag("pci_msitranslate"),
    _flag("pci_power_mgmt"),
    _flag("pci_permissive"),
    _flag("pci_seize"),
    _strings("pci"),
    _strings("dtdev"),
    Key(
        "passthrough",
        Getter.CHOICE,
        "default",
        choices=("default", "disabled", "enabled", "sync_pt", "share_pt"),
        refusal="ERROR: unknown passthrough option '{}'",
        fix="use default, disabled, enabled or share_pt",
    ),
    _string("kernel"),
    _string("ramdisk"),
    _string("device_tree"),
    _string("cmdline"),
    _string("root"),
    _string("extra"),
    _string("bootloader"),
    _string("firmware"),
    Key(
        "irqs",
        Getter.ALL_STRINGS,
        refusal="xl: Unable to get element {} in irq list",
        fix="list decimal interrupt numbers, as in irqs=[112, 113]",
    ),
    Key(
        "iomem",
        Getter.ALL_STRINGS,
        refusal="xl: Unable to get element {} in iomem list",
        fix='list frames in hex, as in iomem=["fd010,1@fd000"]',
    ),
    _strings("disk"),
    Key(
        "gic_version",
        Getter.CHOICE,
        "default",
        choices=("default", "v2", "v3"),
        refusal='Unknown gic_version "{}" specified',
        exit_code=3,
        quiet=True,
        fix="use default, v2 or v3",
    ),
    Key(
        "tee",
        Getter.CHOICE,
        "none",
        choices=("none", "optee", "ffa"),
        refusal='Unknown tee "{}" specified',
        exit_code=3,
        quiet=True,
        fix="use none, optee or ffa",
    ),
    Key("nr_spis", Getter.NUMBER),
    Key(
        "viommu",
        Getter.CHOICE,
        "none",
        choices=("none", "smmuv3"),
        refusal='Unknown vIOMMU type "{}" specified',
        exit_code=3,
        quiet=True,
        fix="use none or smmuv3",
    ),
    _strings("virtio"),
)

# The rest of what xl looks up, on any architecture.
_OTHER = """
    acpi acpi_firmware acpi_laptop_slate acpi_s3 acpi_s4 altp2m altp2m_count altp2mhvm apic
    arm_sci bios bios_path_override boot bootloader_args bootloader_restrict bootloader_user cap
    channel cpu_weight cpuid cpus cpus_soft device_model device_model_args device_model_args_hvm
    device_model_args_pv device_model_override device_model_stubdomain_override
    device_model_stubdomain_seclabel device_model_user device_model_version display dm_restrict
    driver_domain e820_host extratime firmware_override gfx_passthru hap hdtype hpet hvm_pirq
    init_seclabel ioports keymap latency llc_colors localtime max_event_channels
    max_grant_frames max_grant_version max_maptrack_frames mca_caps mmio_hole ms_vm_genid
    msr_relaxed nestedhvm nographic nomigrate nx oos opengl p9 pae period pool pvcalls pvshim
    pvshim_cmdline pvshim_extra pvshim_path rdm rdm_mem_boundary rtc_timeoffset sdl seclabel
    serial shadow_memory slice smbios smbios_firmware soundhw spice spice_clipboard_sharing
    spice_image_compression spice_streaming_video spiceagent_mouse spicedisable_ticketing
    spicehost spicepasswd spiceport spicetls_port spiceusbredirection spicevdagent stdvga
    stubdomain_cmdline stubdomain_kernel stubdomain_memory stubdomain_ramdisk sve timer_mode
    trap_unmapped_accesses tsc_mode usb usbctrl usbdev usbdevice usbversion uuid vdispl
    vendor_device vfb vga videoram vif vif2 viridian vkb vkb_device vmtrace_buf_kb vnc
    vncdisplay vnclisten vncpasswd vncunused vncviewer vnuma vpmu vpt_align vsnd vtpm xauthority
    xen_platform_pci xen_platform_pci_bar_uc xend_suspend_evtchn_compat xenstore_feature_mask
    xenstore_quota
"""
OTHER_KEYS = frozenset(_OTHER.split())

INSTEAD = {
    "arm_vuart": "vuart",
    "dtb": "device_tree",
    "iommu": "viommu",
    "iommu_devid_map": "viommu",
    "smmu": "viommu",
    "xen_9pfs": "p9",
}
"""Keys people write that no spelling distance leads from."""
