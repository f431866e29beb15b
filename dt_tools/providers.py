# SPDX-License-Identifier: BSD-2-Clause
"""The bindings by which a node names its providers: phandles with arguments that these count."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dt_tools.tree import Node

COUNTED = {
    "clocks": "#clock-cells",
    "assigned-clocks": "#clock-cells",
    "assigned-clock-parents": "#clock-cells",
    "resets": "#reset-cells",
    "power-domains": "#power-domain-cells",
    "phys": "#phy-cells",
    "interconnects": "#interconnect-cells",
    "dmas": "#dma-cells",
    "mboxes": "#mbox-cells",
    "hwlocks": "#hwlock-cells",
    "nvmem-cells": "#nvmem-cell-cells",
    "io-channels": "#io-channel-cells",
    "io-backends": "#io-backend-cells",
    "pwms": "#pwm-cells",
    "thermal-sensors": "#thermal-sensor-cells",
    "sound-dai": "#sound-dai-cells",
    "mux-controls": "#mux-control-cells",
    "access-controllers": "#access-controller-cells",
    "performance-domains": "#performance-domain-cells",
    "iommus": "#iommu-cells",
    "msi-parent": "#msi-cells",
    "qcom,smem-states": "#qcom,smem-state-cells",
}
"""Property -> the provider's property that counts the arguments behind each phandle."""

MORE_COUNTED = {
    "cooling-device": "#cooling-cells",
    "mux-states": "#mux-state-cells",
    "trigger-sources": "#trigger-source-cells",
}
"""As `COUNTED`, of bindings that no rule of `dt_tools.checks` reads."""

# Every cell of these is a phandle, when the property is cells at all.
_EACH_NAMES = """
    amd,pcs-handle amd,phy-handle arm,cs-dev-assoc audio-asrc audio-aux-devs audio-codec audio-cpu
    aux-devs backlight bitclock-master cci-control-port companion cpu-idle-states cpus dais ddc
    ddc-i2c-bus devfreq-events domain-idle-states ethernet extcon flash-leds frame-master
    fsl,fman-ports hdmi-phandle i2c-bus i2c-parent leds lens-focus link2 mdio-parent-bus
    memory-controllers memory-region mmc-pwrseq monitored-battery nand-ecc-engine next-level-cache
    nvidia,ddc-i2c-bus nvidia,dpaux nvidia,ganged-mode nvidia,gpio-controller
    nvidia,memory-controller nvidia,outputs nvidia,panel nvidia,phy nvidia,pmc nvidia,xusb-padctl
    nvmem operating-points-v2 panel pcs-handle pcsphy-handle peer-hub phy phy-handle
    pm_qos power-supplies ptimer-handle ptp-timer regulator-coupled-with remote-endpoint
    required-opps secure-monitor sfp shmem simple-audio-card,aux-devs
    simple-audio-card,bitclock-master simple-audio-card,frame-master slim-ifc-dev snps,axi-config
    snps,mtl-rx-config snps,mtl-tx-config spdif-controller sram ssi-controller tbi-handle usb-phy
    vcc-supplies wakeup-parent
"""
_EACH = frozenset(_EACH_NAMES.split())
# The first cell of these is a phandle, and the provider alone knows what follows it.
_FIRST_NAMES = """
    allwinner,codec-analog-controls allwinner,pipelines allwinner,sram amlogic,ao-secure
    amlogic,ao-sysctrl amlogic,canvas fsl,blk-ctrl fsl,ddrc fsl,mipi-phy-gpr fsl,pcie-scfg
    fsl,rcpm-wakeup fsl,scu fsl,stop-mode fsl,usbmisc fsl,usbphy gpr intf_mode
    marvell,system-controller marvell,usb-misc-reg mediatek,adsp mediatek,apmixedsys
    mediatek,auxadc mediatek,cci mediatek,ethsys mediatek,gce-client-reg mediatek,infracfg
    mediatek,larb mediatek,larbs mediatek,pctl-regmap mediatek,pericfg mediatek,platform
    mediatek,scp mediatek,sgmiisys mediatek,smi mediatek,topckgen mediatek,vdecsys mediatek,vpu
    mediatek,wed mediatek,wed-pcie mediatek,wo-ccif nvidia,bpmp nvidia,cmdqv
    nvidia,mipi-calibrate qcom,4ln-config-sel qcom,acc qcom,bcm-voters qcom,dload-mode
    qcom,ext-regs qcom,freq-domain qcom,gmu qcom,halt-regs qcom,ice qcom,ipc qcom,mmio qcom,pbs
    qcom,qaccept-regs qcom,qmp qcom,rpm-msg-ram qcom,rproc qcom,rx-device qcom,saw qcom,saw-reg
    qcom,smem-states qcom,spare-regs qcom,stream-id-range qcom,tcsr-reg qcom,tx-device regmap
    renesas,bonding renesas,cmms renesas,companion renesas,fcp renesas,icu renesas,ipmmu-main
    renesas,sysc renesas,vsps renesas,vspx rockchip,pmu samsung,disp-sysreg samsung,mode
    samsung,sysreg ti,am65x-oldi-io-ctrl ti,camerrx-control ti,iep ti,mbox-rx ti,mbox-tx ti,mii-g-rt
    ti,mii-rt ti,oldi-io-ctrl ti,pa-stats ti,prus ti,ringacc ti,sci ti,serdes-clk
    ti,unmapped-event-sources
"""
_FIRST = frozenset(_FIRST_NAMES.split())
_BUS_NAMES = """
    dma-ranges gpio-ranges interrupt-affinity interrupt-map interrupt-map-mask iommu-map
    iommu-map-mask msi-map msi-map-mask msi-parent ranges stream-match-mask
"""
BUS = frozenset(_BUS_NAMES.split())
"""Properties that describe the host's buses and interrupt controllers."""


def is_first(name: str) -> bool:
    """Whether only the first cell of the property is a phandle."""
    if name in _FIRST:
        return True
    vendor, _, tail = name.rpartition(",")
    if vendor == "mediatek" and tail.endswith("sys"):
        return True
    return (
        tail.startswith("syscon")
        or tail.endswith(("syscon", "-grf", "-sgrf"))
        or (vendor != "" and tail.endswith("grf"))
    )


def form_of(name: str) -> str | None:
    """What counts the arguments behind each phandle: "" nothing; None: it holds no phandles."""
    if name in COUNTED:
        return COUNTED[name]
    if name in MORE_COUNTED:
        return MORE_COUNTED[name]
    if name in ("gpio", "gpios") or (name.endswith(("-gpio", "-gpios")) and name != "nr-gpios"):
        return "#gpio-cells"
    if name in _EACH or name.endswith(("-supply", "-handle", "-phandle")):
        return ""
    return "" if name.startswith("pinctrl-") and name[8:].isdigit() else None


COMPANIONS = {
    "clock-names": "clocks",
    "assigned-clock-rates": "assigned-clocks",
    "assigned-clock-rates-u64": "assigned-clocks",
    "assigned-clock-sscs": "assigned-clocks",
    "reset-names": "resets",
    "power-domain-names": "power-domains",
    "phy-names": "phys",
    "interconnect-names": "interconnects",
    "dma-names": "dmas",
    "mbox-names": "mboxes",
    "hwlock-names": "hwlocks",
    "nvmem-cell-names": "nvmem-cells",
    "io-channel-names": "io-channels",
    "io-backend-names": "io-backends",
    "pwm-names": "pwms",
    "mux-control-names": "mux-controls",
    "memory-region-names": "memory-region",
    "pinctrl-names": "pinctrl-0",
    "qcom,smem-state-names": "qcom,smem-states",
}
"""A list of names (or rates) belongs to the property whose entries it names, in that order."""

# Parts of names of cells that, when they are also a phandle, name a block all drivers share.
_SHARED = ("sys", "reg", "gpr", "pmu", "ctrl", "control", "scm", "map", "cfg", "mode", "grf")


def seems_reference(name: str, cells: tuple[int, ...], phandles: dict[int, Node]) -> Node | None:
    """The node that a vendor's property of unknown form names by its first cell, as it seems.

    A number can be a phandle by chance. It is taken for one when the node named is a syscon and
    the property's name speaks of registers, or when the two have one name.
    """
    node = phandles.get(cells[0]) if cells and "," in name else None
    if node is None:
        return None
    tail = name.partition(",")[2]
    kind = node.name.partition("@")[0].rstrip("0123456789-")
    if len(kind) > 2 and (tail == kind or tail.endswith(f"-{kind}")):
        return node
    shared = any(part in tail for part in _SHARED)
    return node if shared and node.is_compatible("syscon") else None
