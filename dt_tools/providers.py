# SPDX-License-Identifier: BSD-2-Clause
"""The bindings by which a node names its providers: phandles with arguments that these count."""

from __future__ import annotations

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
