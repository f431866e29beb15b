# SPDX-License-Identifier: BSD-2-Clause
"""What each key of a guest configuration means: one entry per key xl looks up.

``KEYS`` stands in the order in which xl reads them, which decides what error comes first. Keys
whose value is more than a number, a word or a text are read by a function of their own in
``readers``; their entry still names the key, the guests it is for and who reads it.
"""

from __future__ import annotations

from enum import Enum, auto

from xl_configs.frozen import frozen


class Dialect(Enum):
    """Whose reading of the language.

    ``xl`` is stock xl 4.20. ``xl-viommu`` is the vIOMMU series on Xen master: ``viommu``, and what
    master reads and 4.20 does not. ``ours`` is stock xl 4.20, plus those keys and our own.
    """

    STOCK = "xl"
    SERIES = "xl-viommu"
    OURS = "ours"


class Getter(Enum):
    """How a key's value is read."""

    STRING = auto()
    """One value; a list is ignored with a warning."""
    NUMBER = auto()
    """One value, read as C's strtol with base 0; anything else is ignored with a warning."""
    BOOL = auto()
    """A number, true unless zero."""
    WORD = auto()
    """A string out of ``choices``, without regard to case."""
    EXACT = auto()
    """A string out of ``choices``, to the letter."""
    PREFIX = auto()
    """A string that is a beginning of one of ``choices``; the first one it fits."""
    BOUNDED = auto()
    """A number from 0 to 2^31-1; anything else is refused without a message."""
    STRINGS = auto()
    """A list, ended without a word by the first element that is itself a list."""
    SPECIAL = auto()
    """Read by the function of that name in ``readers``."""


@frozen
class Key:
    """One key.

    Attributes:
        name: as written in the configuration.
        getter: how its value is read.
        into: where libxl's domain configuration keeps it, ``/`` between the levels; empty when
            the value is no field by itself.
        unit: of a number there: ``kb`` (the key is MiB), ``i32``, ``u32`` or empty for 64 bits.
        default: what the getters of numbers and words give when the key is absent or ignored.
        choices: words it accepts, for the choosing getters; ``word:name`` where libxl's name for
            a word is another.
        refusal: xl's message, with ``{}`` for the value.
        exit_code: xl's exit code after ``refusal``.
        quiet: xl ignores a list here without a warning.
        fix: what to write instead.
        only: the guest type that has the key, or empty for all.
        later: stock xl 4.20 does not look the key up.
        ours: no xl looks it up.
        instead: what a deprecated key is replaced by.
    """

    name: str
    getter: Getter
    into: str = ""
    unit: str = ""
    default: str | int | None = None
    choices: tuple[str, ...] = ()
    refusal: str = ""
    exit_code: int = 1
    quiet: bool = False
    fix: str = ""
    only: str = ""
    later: bool = False
    ours: bool = False
    instead: str = ""

    def read_by(self, dialect: Dialect) -> bool:
        """Whether that reader looks the key up."""
        if self.ours:
            return dialect is Dialect.OURS
        return not self.later or dialect is not Dialect.STOCK


def _string(name: str, into: str = "", only: str = "") -> Key:
    return Key(name, Getter.STRING, into, only=only)


def _number(name: str, into: str = "", unit: str = "", only: str = "") -> Key:
    return Key(name, Getter.NUMBER, into, unit, only=only)


def _bool(name: str, into: str, only: str = "", *, later: bool = False) -> Key:
    return Key(name, Getter.BOOL, into, only=only, later=later)


def _special(name: str, only: str = "", *, instead: str = "", fix: str = "") -> Key:
    return Key(name, Getter.SPECIAL, only=only, instead=instead, fix=fix)


def _strings(name: str, fix: str = "") -> Key:
    return Key(name, Getter.STRINGS, fix=fix)


def _word(
    name: str, into: str, words: str, refusal: str, exit_code: int = 1, **more: object
) -> Key:
    choices = tuple(words.split())
    shown = [word for word in choices if word != "sync_pt"]  # which Arm does not have
    fix = f"use {', '.join(shown[:-1])} or {shown[-1]}"
    return Key(
        name,
        Getter.WORD,
        into,
        choices=choices,
        refusal=refusal,
        exit_code=exit_code,
        fix=fix,
        **more,  # type: ignore[arg-type]
    )


_ACTIONS = (
    "destroy",
    "restart",
    "rename-restart:restart_rename",
    "preserve",
    "coredump-destroy:coredump_destroy",
    "coredump-restart:coredump_restart",
    "soft-reset:soft_reset",
)


def _action(name: str, default: str) -> Key:
    return Key(
        name,
        Getter.EXACT,
        name,
        default=default,
        choices=_ACTIONS,
        refusal=f'Unknown {name} action "{{}}" specified',
        fix="use one of " + ", ".join(word.partition(":")[0] for word in _ACTIONS),
    )


_C = "c_info/"
_B = "b_info/"
_SCHED = "b_info/sched_params/"
_ARM = "b_info/arch_arm/"
_PVH = "b_info/type.pvh/"
_HVM = "b_info/type.hvm/"
_SPICE = "b_info/type.hvm/spice/"
_SVE_LENGTHS = " ".join(str(bits) for bits in range(128, 2049, 128))

# What a guest is, and the resources it has.
_DOMAIN = (
    _string("init_seclabel"),
    _string("seclabel"),
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
        instead="type",
    ),
    _bool("hap", _C + "hap"),
    _special("name"),
    _special("uuid"),
    _bool("oos", _C + "oos"),
    _string("pool", _C + "pool_name"),
    Key("xenstore_feature_mask", Getter.NUMBER, later=True),
    Key("xenstore_quota", Getter.SPECIAL, later=True, fix="write a list of NAME=VALUE"),
    _bool("pvshim", _PVH + "pvshim", "pvh"),
    _string("pvshim_path", _PVH + "pvshim_path", "pvh"),
    _string("pvshim_cmdline", _PVH + "pvshim_cmdline", "pvh"),
    _string("pvshim_extra", _PVH + "pvshim_extra", "pvh"),
    _number("cpu_weight", _SCHED + "weight", "i32"),
    _number("cap", _SCHED + "cap", "i32"),
    _number("period", _SCHED + "period", "i32"),
    _number("slice", _SCHED + "slice", "i32"),
    _number("latency", _SCHED + "latency", "i32"),
    _number("extratime", _SCHED + "extratime", "i32"),
    _number("memory", _B + "target_memkb", "kb"),
    _number("maxmem", _B + "max_memkb", "kb"),
    _special("llc_colors", fix='list colours, as in llc_colors=["0-3", "7"]'),
    _special("vcpus"),
    _number("maxvcpus"),
    Key(
        "vuart",
        Getter.WORD,
        _ARM + "vuart",
        choices=("unknown", "sbsa_uart"),
        refusal='ERROR: invalid value "{}" for "vuart"',
        fix='use vuart="sbsa_uart" or leave the key out',
    ),
    _special("vnuma", fix='write vnuma=[["pnode=0", "size=512", "vcpus=0-1"], ...]'),
    _special("cpus", fix='write CPUs as in cpus="0-3,^2", or a list of one such text a vCPU'),
    _special("cpus_soft", fix='write CPUs as in cpus_soft="0-3,^2"'),
    Key("max_grant_frames", Getter.BOUNDED, _B + "max_grant_frames"),
    Key("max_maptrack_frames", Getter.BOUNDED, _B + "max_maptrack_frames"),
    Key("max_grant_version", Getter.BOUNDED, _B + "max_grant_version"),
    _action("on_poweroff", "destroy"),
    _action("on_reboot", "restart"),
    _action("on_watchdog", "destroy"),
    _action("on_crash", "destroy"),
    _action("on_soft_reset", "soft-reset"),
    _bool("e820_host", "b_info/type.pv/e820_host", "pv"),
)

# What it is given of the host, and what it boots.
_BOOT = (
    _number("pci_msitranslate", unit="i32"),
    _number("pci_power_mgmt", unit="i32"),
    _number("pci_permissive", unit="i32"),
    _number("pci_seize", unit="i32"),
    _special("rdm"),
    _special("pci", fix="write [DDDD:]BB:DD.F[@SLOT][,KEY=VALUE]* in hex, without blanks"),
    _strings("dtdev"),
    _word(
        "passthrough",
        _C + "passthrough",
        "default disabled enabled sync_pt share_pt",
        "ERROR: unknown passthrough option '{}'",
        default="default",
    ),
    _number("shadow_memory", _B + "shadow_memkb", "kb"),
    _bool("nomigrate", _B + "disable_migrate"),
    _special("tsc_mode"),
    _number("rtc_timeoffset", _B + "rtc_timeoffset", "u32"),
    _special("vncviewer", instead="the -V option of xl create"),
    _bool("localtime", _B + "localtime"),
    _number("videoram", _B + "video_memkb", "kb"),
    _number("max_event_channels", _B + "event_channels", "u32"),
    _string("kernel", _B + "kernel"),
    _string("ramdisk", _B + "ramdisk"),
    _string("device_tree", _B + "device_tree"),
    _special("cmdline"),
    _bool("driver_domain", _C + "driver_domain"),
    _bool("acpi", _B + "acpi"),
    _string("bootloader", _B + "bootloader"),
    _bool("bootloader_restrict", _B + "bootloader_restrict"),
    _string("bootloader_user", _B + "bootloader_user"),
    _special("bootloader_args", fix="write a list of the arguments"),
    _special("timer_mode"),
    _bool("nestedhvm", _B + "nested_hvm"),
)

# Only x86 runs such guests; xl for Arm reads the keys all the same.
_HVM_KEYS = (
    _special("hvm_kernel", "hvm"),
    _string("firmware_override", _HVM + "firmware", "hvm"),
    _string("bios_path_override", _HVM + "system_firmware", "hvm"),
    _special("bios", "hvm"),
    _bool("pae", _HVM + "pae", "hvm"),
    _bool("acpi_s3", _HVM + "acpi_s3", "hvm"),
    _bool("acpi_s4", _HVM + "acpi_s4", "hvm"),
    _bool("acpi_laptop_slate", _HVM + "acpi_laptop_slate", "hvm"),
    _bool("nx", _HVM + "nx", "hvm"),
    _bool("hpet", _HVM + "hpet", "hvm"),
    _bool("vpt_align", _HVM + "vpt_align", "hvm"),
    _bool("apic", _B + "apic", "hvm"),
    _bool("hvm_pirq", _HVM + "pirq", "hvm"),
    _special("viridian", "hvm"),
    _special("mmio_hole", "hvm"),
    _special("altp2mhvm", "hvm", instead="altp2m"),
    _string("smbios_firmware", _HVM + "smbios_firmware", "hvm"),
    _string("acpi_firmware", _HVM + "acpi_firmware", "hvm"),
    _special("smbios", "hvm"),
    _special("ms_vm_genid", "hvm"),
    _number("rdm_mem_boundary", _HVM + "rdm_mem_boundary_memkb", "kb", "hvm"),
    _special("mca_caps", "hvm"),
)

# Devices, real and virtual.
_DEVICES = (
    _special("firmware"),
    _special("altp2m"),
    Key("altp2m_count", Getter.SPECIAL, later=True),
    _special("vmtrace_buf_kb"),
    _special("ioports", fix='list ports in hex, as in ioports=["3f8-3ff"]'),
    _special("irqs", fix="list decimal interrupt numbers, as in irqs=[112, 113]"),
    _special("iomem", fix='list frames in hex, as in iomem=["fd010,1@fd000"], with nothing behind'),
    _special("disk", fix='write disk=["TARGET,FORMAT,VDEV,ACCESS", ...]'),
    _special("p9", fix='write p9=["tag=TAG,path=DIR,security_model=none", ...]'),
    _special("vtpm", fix='write vtpm=["backend=DOMAIN", ...]'),
    _special("vdispl", fix='write vdispl=["connectors=ID:WIDTHxHEIGHT;...", ...]'),
    _special("pvcalls", fix='write pvcalls=["backend=DOMAIN", ...]'),
    _special("vsnd", fix='write vsnd=[["card, backend=DOMAIN", "pcm, ...", "stream, ..."], ...]'),
    _special("channel", fix='write channel=["name=NAME,connection=pty", ...]'),
    _special("vif", fix='write vif=["mac=...,bridge=...", ...]'),
    _special("vif2", instead="vif"),
    _special("vfb", fix='write vfb=["vnc=1,...", ...]'),
    _special("usbctrl", fix='write usbctrl=["type=pv,version=2,ports=4", ...]'),
    _special("usbdev", fix='write usbdev=["hostbus=1,hostaddr=3", ...]'),
    _special("cpuid"),
    _special("device_model", instead="device_model_override"),
    _string("device_model_override", _B + "device_model"),
    _special("device_model_version", fix='use device_model_version="qemu-xen"'),
    _bool("device_model_stubdomain_override", _B + "device_model_stubdomain"),
    _string("device_model_stubdomain_seclabel", _B + "device_model_ssid_label"),
    _string("device_model_user", _B + "device_model_user"),
    _string("stubdomain_kernel", _B + "stubdomain_kernel"),
    _string("stubdomain_cmdline", _B + "stubdomain_cmdline"),
    _string("stubdomain_ramdisk", _B + "stubdomain_ramdisk"),
    _number("stubdomain_memory", _B + "stubdomain_memkb", "kb"),
    _special("device_model_args", fix="write a list of the arguments"),
    _special("device_model_args_pv", fix="write a list of the arguments"),
    _special("device_model_args_hvm", fix="write a list of the arguments"),
    _special("vnc"),
    _bool("dm_restrict", _B + "dm_restrict"),
)

_HVM_DEVICES = (
    _special("vga", "hvm"),
    _special("hdtype", "hvm"),
    _string("keymap", _HVM + "keymap", "hvm"),
    _bool("spice", _SPICE + "enable", "hvm"),
    _number("spiceport", _SPICE + "port", "i32", "hvm"),
    _number("spicetls_port", _SPICE + "tls_port", "i32", "hvm"),
    _string("spicehost", _SPICE + "host", "hvm"),
    _bool("spicedisable_ticketing", _SPICE + "disable_ticketing", "hvm"),
    _string("spicepasswd", _SPICE + "passwd", "hvm"),
    _bool("spiceagent_mouse", _SPICE + "agent_mouse", "hvm"),
    _bool("spicevdagent", _SPICE + "vdagent", "hvm"),
    _bool("spice_clipboard_sharing", _SPICE + "clipboard_sharing", "hvm"),
    _number("spiceusbredirection", _SPICE + "usbredirection", "i32", "hvm"),
    _string("spice_image_compression", _SPICE + "image_compression", "hvm"),
    _string("spice_streaming_video", _SPICE + "streaming_video", "hvm"),
    _bool("nographic", _HVM + "nographic", "hvm"),
    _special("gfx_passthru", "hvm"),
    _special("serial", "hvm"),
    _string("boot", _HVM + "boot", "hvm"),
    _bool("usb", _HVM + "usb", "hvm"),
    _number("usbversion", _HVM + "usbversion", "i32", "hvm"),
    _special("usbdevice", "hvm"),
    _bool("vkb_device", _HVM + "vkb_device", "hvm"),
    _string("soundhw", _HVM + "soundhw", "hvm"),
    _bool("xen_platform_pci", _HVM + "xen_platform_pci", "hvm"),
    _bool("xen_platform_pci_bar_uc", "", "hvm", later=True),
    _special("hvm_vnc", "hvm"),
    _special("vendor_device", "hvm"),
)

_ARCH = (
    _word(
        "gic_version",
        _ARM + "gic_version",
        "default v2 v3",
        'Unknown gic_version "{}" specified',
        3,
        default="default",
        quiet=True,
    ),
    _word(
        "tee",
        _B + "tee",
        "none optee ffa",
        'Unknown tee "{}" specified',
        3,
        default="none",
        quiet=True,
    ),
    Key(
        "sve",
        Getter.WORD,
        _ARM + "sve_vl",
        default="disabled",
        choices=("hw", "disabled", *_SVE_LENGTHS.split()),
        refusal='Unknown sve "{}" specified',
        quiet=True,
        fix="use disabled, hw, or a vector length of 128 to 2048 bits in steps of 128",
    ),
    Key("nr_spis", Getter.NUMBER, _ARM + "nr_spis", "u32"),
    _bool("trap_unmapped_accesses", _B + "trap_unmapped_accesses", later=True),
    Key("arm_sci", Getter.SPECIAL, later=True, fix='use arm_sci="type=scmi_smc" or "type=none"'),
    _word(
        "viommu",
        _ARM + "viommu_type",
        "none smmuv3",
        'Unknown vIOMMU type "{}" specified',
        3,
        default="none",
        quiet=True,
        later=True,
    ),
    Key(
        "iommu_devid_map",
        Getter.SPECIAL,
        ours=True,
        fix='write iommu_devid_map=["PMASTER_ID[@VMASTER_ID],IOMMU_BASE_ADDRESS", ...]',
    ),
    _special("vkb", fix='write vkb=["backend-type=qemu,...", ...]'),
    _special("virtio", fix='write virtio=["type=virtio,device26,transport=mmio", ...]'),
    _bool("xend_suspend_evtchn_compat", _C + "xend_suspend_evtchn_compat"),
    _special("msr_relaxed"),
    _bool("vpmu", _B + "vpmu"),
)

KEYS: tuple[Key, ...] = (
    *_DOMAIN,
    *_BOOT,
    *_HVM_KEYS,
    *_DEVICES,
    *_HVM_DEVICES,
    *_ARCH,
)

PSEUDO_KEYS = frozenset({"hvm_kernel", "hvm_vnc"})
"""Places in the order where xl checks what other keys said."""

HELPER_KEYS = frozenset(
    {"vnclisten", "vncpasswd", "vncdisplay", "vncunused", "sdl", "opengl", "display", "xauthority"}
    | {"root", "extra", "stdvga"}
)
"""Keys that are read along with another one: ``vnc``, ``cmdline``, ``vga``."""

KNOWN_KEYS = (frozenset(key.name for key in KEYS) | HELPER_KEYS) - PSEUDO_KEYS

INSTEAD = {
    "arm_vuart": "vuart",
    "dtb": "device_tree",
    "iommu": "viommu",
    "smmu": "viommu",
    "xen_9pfs": "p9",
}
"""Keys people write that no spelling distance leads from."""
