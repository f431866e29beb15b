# SPDX-License-Identifier: BSD-2-Clause
"""The partial tree of every enabled master of the boards, against rules that are written here.

Each master is completed alone: it is refused by a rule, or its partial tree and configuration pass
Xen's rules, dtc, and an account of every property that is drawn up from the two trees anew. Nothing
of the builder is imported for that. With VSMMU_BOARDS all boards of that
folder are looked at, with VSMMU_V2_MASTERS more than 100 masters behind SMMUv2s:

    VSMMU_BOARDS=/path/to/dtbs pytest -s tests/differential/test_partial_masters.py
"""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dt_tools import blob
from dt_tools.completed import Completed, complete
from dt_tools.errors import DtbError, Refusal
from dt_tools.guest import Options
from dt_tools.platform import Platform
from xl_configs import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.tree import Node, Tree

POLICIES = ("drop", "stub", "refuse")
V2_MASTERS = int(os.environ.get("VSMMU_V2_MASTERS", "100"))
# Masters of the corpus that are looked at without VSMMU_BOARDS.
SLICE = 150
GIC_PHANDLE = 65000
DTC = (
    "phandle_references", "reg_format", "ranges_format", "addr_size_cells",
    "msi_parent_property", "clocks_property", "resets_property", "interrupt_provider",
    "power_domains_property", "duplicate_node_names", "explicit_phandles", "gpios_property",
    "phys_property", "dmas_property",
)  # fmt: skip
DTC_QUIET = (
    "unique_unit_address", "unit_address_vs_reg", "avoid_unnecessary_addr_size",
    "simple_bus_reg", "avoid_default_addr_size", "graph_endpoint",
    # The GIC and the SMMUs are the toolstack's to put in place.
    "interrupts_property", "iommus_property", "interrupts_extended_property",
)  # fmt: skip

# Properties that hold phandles: with arguments as many as the provider says, each cell one, or
# the first cell one. From the bindings; drawn up apart from the builder's.
COUNTED = {
    "clocks": "#clock-cells", "assigned-clocks": "#clock-cells", "resets": "#reset-cells",
    "assigned-clock-parents": "#clock-cells", "power-domains": "#power-domain-cells",
    "phys": "#phy-cells", "interconnects": "#interconnect-cells", "dmas": "#dma-cells",
    "mboxes": "#mbox-cells", "hwlocks": "#hwlock-cells", "nvmem-cells": "#nvmem-cell-cells",
    "io-channels": "#io-channel-cells", "pwms": "#pwm-cells", "sound-dai": "#sound-dai-cells",
    "thermal-sensors": "#thermal-sensor-cells", "mux-controls": "#mux-control-cells",
    "interrupts-extended": "#interrupt-cells", "msi-parent": "#msi-cells",
}  # fmt: skip
EACH = re.compile(
    r".*-supply|pinctrl-\d+|memory-region|phy-handle|pcs-handle|pcsphy-handle|tbi-handle|phy"
    r"|operating-points-v2|required-opps|backlight|panel|extcon|sram|snps,axi-config"
    r"|snps,mtl-[rt]x-config|ddc-i2c-bus|usb-phy|remote-endpoint|interrupt-parent|shmem|nvmem"
    r"|next-level-cache|mmc-pwrseq|peer-hub|companion|monitored-battery|power-supplies|i2c-bus"
    r"|slim-ifc-dev|nvidia,(outputs|dpaux|panel|ganged-mode|memory-controller|xusb-padctl)"
    r"|nvidia,ddc-i2c-bus|dais|link2"
)
FIRST = re.compile(
    r"(?!nr-)(.*-)?gpios?|.*syscon.*|.*[,-]s?grf|nvidia,(bpmp|mipi-calibrate)|fsl,(usbmisc|usbphy)"
    r"|fsl,(stop-mode|blk-ctrl)|qcom,(gmu|qmp|ice|rproc|halt-regs|ext-regs|spare-regs|smem-states)"
    r"|qcom,(dload-mode|tcsr-reg|freq-domain|rpm-msg-ram)|mediatek,(scp|vpu|smi|larb|larbs|vdecsys)"
    r"|mediatek,(gce-client-reg|infracfg|pericfg)|renesas,(fcp|vsps|companion|bonding)"
    r"|allwinner,sram|samsung,(disp-sysreg|sysreg)|amlogic,(canvas|ao-sysctrl)|intf_mode"
)
NO_PHANDLES = (0, 0xFFFFFFFF)


def boards(corpus: Path, samples: Path) -> list[Path]:
    folder = os.environ.get("VSMMU_BOARDS")
    if folder:
        return sorted(Path(folder).rglob("*.dtb"))
    return sorted((corpus / "dtbs").glob("*.dtb")) + sorted(samples.glob("*board.dtb"))


def masters(places: list[Path]) -> Iterator[tuple[Platform, str, str]]:
    """(board, path, viommu): all behind SMMUv3s, and the first hundred behind others."""
    left = V2_MASTERS
    for place in places:
        try:
            board = Platform.from_tree(blob.read(place.read_bytes(), place.name), place.name)
        except DtbError:
            continue
        kinds = {smmu.path: smmu.kind for smmu in board.smmus}
        for master in board.masters:
            used = {kinds[s.smmu_path] for s in (*master.streams, *master.maps)}
            if master.status != "okay" or not used:
                continue
            if "arm,smmu-v3" in used:
                yield board, master.path, "smmuv3"
            elif used <= {"arm,mmu-500", "arm,smmu-v2"} and left:
                left -= 1
                yield board, master.path, "none"


# What the partial tree has to be.


def check(done: Completed, board: Platform, path: str, viommu: str) -> None:
    partial = blob.read(blob.write(done.partial))
    config = load(done.cfg(), "full.cfg")
    assert list(partial.root.children) == ["passthrough"]
    bus = partial.root.children["passthrough"]
    assert bus.strings("compatible") == ("simple-bus",)
    assert (bus.cells("#address-cells"), bus.cells("#size-cells")) == ((2,), (2,))
    assert bus.props["ranges"] == b""
    smmus = {smmu.phandle for smmu in board.smmus}
    check_phandles(partial)
    for node in partial.walk():
        check_references(node, partial, smmus)
    host = board.tree.node(path)
    (device,) = done.guest.bindings.devices
    assert device.path == path
    guest = partial.node(device.guest_path)
    gone = {one.property: one.reason for one in device.dropped}
    assert all(gone.values())
    spis: set[int] = set()
    check_pair(host, guest, "", gone, board, config, spis, viommu)
    assert spis == {irq - 32 for irq in config.irqs}
    check_iomem(host, guest, board, config)


def check_phandles(partial: Tree) -> None:
    values = [n.u32("phandle") for n in partial.walk() if "phandle" in n.props]
    assert all(value is not None and 0 < value < 65000 for value in values), values
    assert len(set(values)) == len(values), "a phandle twice"
    assert not [n for n in partial.walk() if "linux,phandle" in n.props]


def check_references(node: Node, partial: Tree, smmus: set[int | None]) -> None:
    known = {n.u32("phandle"): n for n in partial.walk() if "phandle" in n.props}
    for name in node.props:
        cells = node.cells(name) or ()
        where = f"{node.path}/{name}"
        if name in ("iommu-map", "msi-map", "interrupt-map", "dma-ranges"):
            raise AssertionError(f"{where} is about the host's buses")
        if name == "iommus":
            assert not set(cells[::2]) - smmus, where
        elif name in COUNTED or name.endswith("gpios"):
            counter = COUNTED.get(name, "#gpio-cells")
            at = 0
            while at < len(cells):
                if cells[at] in NO_PHANDLES:
                    at += 1
                    continue
                assert cells[at] in known, f"{where} dangles"
                at += 1 + known[cells[at]].u32(counter)
            assert at == len(cells), f"{where} ends in the middle"
        elif name == "interrupt-parent" and cells == (GIC_PHANDLE,):
            continue
        elif EACH.fullmatch(name):
            assert set(cells) <= set(known) | set(NO_PHANDLES), f"{where} dangles"
        elif FIRST.fullmatch(name) and cells:
            assert cells[0] in known, f"{where} dangles"


def check_pair(  # noqa: C901 - one branch for each rule
    host, guest, prefix, gone, board, config, spis, viommu
) -> None:
    """Account for every property of a host node and of those below it."""
    bus = any("reg" in child.props for child in host.children.values()) and "ranges" in host.props
    for name, raw in host.props.items():
        where = prefix + name
        made = guest.props.get(name)
        if name in ("interrupts", "interrupts-extended"):
            check_interrupts(host, guest, name, where, gone, spis, board)
        elif made == raw:
            assert name not in ("reg",) or not prefix or where, where
        elif made is None:
            assert where in gone, f"{where} is lost in silence"
        elif name == "reg":
            assert len(made) % 16 == 0, where
        elif name == "iommus":
            assert viommu == "smmuv3"
            cells = host.cells(name)
            pairs = dict.fromkeys(zip(cells[::2], cells[1::2], strict=True))
            assert list(pairs) == list(zip(*[iter(guest.cells(name))] * 2, strict=True)), where
        elif name in ("#address-cells", "#size-cells"):
            assert "ranges" in host.props, where
            assert guest.u32(name) == 2, where
        elif name == "ranges":
            assert made == b"", where
        elif name == "interrupt-names":
            names = iter(host.strings(name))
            assert all(any(n == have for have in names) for n in guest.strings(name)), where
        elif name == "interrupt-parent":
            assert guest.u32(name) == GIC_PHANDLE or guest.u32(name) is not None, where
        elif name == "clocks":
            check_clocks(host, guest, where, board)
        elif name.endswith("-supply"):
            check_supply(host, guest, name, board)
        else:
            raise AssertionError(f"{where} changed from {raw!r} to {made!r}")
        assert (made is None) or where not in gone or name.startswith("interrupts"), where
    added = set(guest.props) - set(host.props)
    allowed = {"dma-coherent", "dma-noncoherent", "interrupt-parent", "interrupts", "phandle"}
    if bus:
        allowed |= {"#address-cells", "#size-cells"}
    if "interrupt-controller" in host.props:
        allowed.add("#address-cells")
    assert added <= allowed, added
    for name in ("dma-coherent", "dma-noncoherent"):
        if name in added:
            assert any(name in parent.props for parent in host.ancestors())
    for name, child in host.children.items():
        if name in guest.children:
            inner = f"{prefix}{name}/"
            check_pair(child, guest.children[name], inner, gone, board, config, spis, viommu)
        else:
            assert f"{prefix}{name}/" in gone, f"{prefix}{name}/ is lost in silence"
    assert set(guest.children) <= set(host.children)


def check_interrupts(host, guest, name, where, gone, spis, board) -> None:
    """What the guest has are SPIs that the host's cells hold, or cells of a controller inside."""
    if name not in guest.props and "interrupts" not in guest.props:
        assert where in gone, f"{where} is lost in silence"
        return
    own = guest.u32("interrupt-parent") not in (None, GIC_PHANDLE)
    if own or "interrupts-extended" in guest.props:
        return  # check_references has looked at it
    cells = guest.cells("interrupts")
    assert cells, where
    assert len(cells) % 3 == 0, where
    rows = list(zip(*[iter(cells)] * 3, strict=True))
    assert all(kind == 0 and number < 988 and flags < 16 for kind, number, flags in rows), where
    spis |= {number for _, number, _ in rows}
    if "interrupts-extended" in host.props and name == "interrupts":
        return
    resolved = [i.number - 32 for i in board.interrupts_of(host) if i.kind == "SPI"]
    assert [number for _, number, _ in rows] == resolved, where
    if len(resolved) < len(board.interrupts_of(host)):
        assert where in gone, f"some of {where} are lost in silence"


def check_clocks(host: Node, guest: Node, where: str, board: Platform) -> None:
    """As many clocks as the host names; each stub is a fixed-clock, of the provider's rate."""
    phandles = board.tree.phandles()
    bus = guest
    while bus.name != "passthrough":
        bus = bus.parent
    stubs = {n.u32("phandle"): n for n in bus.children.values() if "clock-frequency" in n.props}
    cells, at, new, to = host.cells("clocks"), 0, guest.cells("clocks"), 0
    while at < len(cells):
        if cells[at] in NO_PHANDLES:
            at, to = at + 1, to + 1
            continue
        provider = phandles[cells[at]]
        count = provider.u32("#clock-cells")
        stub = stubs.get(new[to])
        if stub is None:
            assert new[to : to + 1 + count] == cells[at : at + 1 + count], where
            to += count
        else:
            assert stub.strings("compatible") == ("fixed-clock",)
            assert stub.u32("#clock-cells") == 0
            assert stub.u32("clock-frequency") > 0
            if provider.is_compatible("fixed-clock"):
                assert stub.props["clock-frequency"] == provider.props["clock-frequency"]
        at, to = at + 1 + count, to + 1
    assert to == len(new), where
    if "clock-names" in host.props:
        assert guest.props["clock-names"] == host.props["clock-names"]


def check_supply(host: Node, guest: Node, name: str, board: Platform) -> None:
    provider = board.tree.phandles()[host.u32(name)]
    stub = next(
        n for n in tree_root(guest).walk() if n.props.get("phandle") == guest.props[name]
    )  # fmt: skip
    assert stub.strings("compatible") == ("regulator-fixed",)
    low, high = (stub.props.get(f"regulator-{end}-microvolt") for end in ("min", "max"))
    assert low == high
    if low is not None:
        assert low == provider.props["regulator-min-microvolt"]
        assert low == provider.props["regulator-max-microvolt"]


def tree_root(node: Node) -> Node:
    while node.parent is not None:
        node = node.parent
    return node


def check_iomem(host: Node, guest: Node, board: Platform, config) -> None:
    """Each register of the guest is behind iomem the register of the host, and nothing else is."""
    pages: dict[int, int] = {}
    for entry in config.iomem:
        for page in range(entry.count):
            assert pages.setdefault(entry.gfn + page, entry.start + page) == entry.start + page
    used: set[int] = set()
    for node, copy, addressed in pairs(host, guest):
        if "reg" not in copy.props or not addressed:
            continue
        windows = list(zip(*[iter(struct.unpack(f">{len(copy.props['reg']) // 8}Q",
                                                copy.props["reg"]))] * 2, strict=True))  # fmt: skip
        regs = [(reg.cpu_base, reg.size) for reg in board.reg_of(node)]
        assert len(windows) == len(regs)
        for (base, size), (cpu, cpu_size) in zip(windows, regs, strict=True):
            assert size == cpu_size
            assert base % 4096 == cpu % 4096
            for page in range(base // 4096, (base + size - 1) // 4096 + 1):
                assert pages[page] == cpu // 4096 + page - base // 4096
                used.add(page)
    assert used == set(pages), "iomem maps more than registers"
    hosts = {pages[page] for page in used}
    own = {node.path for node in host.walk()}
    for node in board.tree.walk():
        if node.path in own or "reg" not in node.props or node in list(host.ancestors()):
            continue
        if node.path.startswith(("/memory", "/reserved-memory")):
            continue
        for reg in board.reg_of(node) or ():
            last = (reg.cpu_base + max(reg.size, 1) - 1) // 4096
            if last - reg.cpu_base // 4096 > len(hosts):
                shared = any(reg.cpu_base // 4096 <= page <= last for page in hosts)
            else:
                shared = any(p in hosts for p in range(reg.cpu_base // 4096, last + 1))
            assert not shared, f"{node.path} shares a page"


def pairs(host: Node, guest: Node) -> Iterator[tuple[Node, Node, bool]]:
    """Nodes, their copies, and whether their reg is an address of the CPU."""
    stack = [(host, guest, True)]
    while stack:
        node, copy, addressed = stack.pop()
        yield node, copy, addressed
        for name, child in copy.children.items():
            stack.append((node.children[name], child, "ranges" in copy.props))


def dtc(tree: Tree, place: Path) -> str:
    program = shutil.which("dtc")
    assert program is not None
    place.write_bytes(blob.write(tree))
    options = [f"-E{name}" for name in DTC] + [f"-Wno-{name}" for name in DTC_QUIET]
    command = [program, "-q", "-I", "dtb", "-O", "dts", "-o", "/dev/null", *options, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return "" if done.returncode == 0 else done.stderr or f"dtc left with {done.returncode}"


def test_every_master_is_clean_or_refused(
    corpus: Path, samples: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    has_dtc = shutil.which("dtc") is not None
    counts: dict[str, Counter[str]] = {policy: Counter() for policy in POLICIES}
    found = list(masters(boards(corpus, samples)))
    if not os.environ.get("VSMMU_BOARDS") and len(found) > SLICE:
        found = random.Random(5).sample(found, SLICE)
    wrong = []
    for board, path, viommu in found:
        text = f'name="g"\nkernel="k"\nmemory=512\nviommu="{viommu}"\ndtdev=["{path}"]\n'
        for policy in POLICIES:
            try:
                options = Options(providers=policy)
                done = complete(load(text.encode(), "g.cfg"), board, "p.dtb", options=options)
            except Refusal as error:
                counts[policy][f"{viommu} refused {error.rule}"] += 1
                whole = re.fullmatch(r"DT\d\d\d", error.rule) and error.reason and error.fix
                if not whole or not error.path.startswith("/"):
                    wrong.append(f"{board.source} {path}: half a refusal: {error}")
                continue
            try:
                check(done, board, path, viommu)
                said = dtc(done.partial, tmp_path / "p.dtb") if has_dtc else ""
                assert said == ""
                counts[policy][f"{viommu} clean"] += 1
            except AssertionError as error:
                counts[policy][f"{viommu} wrong"] += 1
                wrong.append(f"{board.source} {path} ({policy}): {error}")
    for policy, rows in counts.items():
        print(policy, dict(sorted(rows.items())))
    assert not wrong, f"{len(wrong)} are wrong:\n" + "\n".join(wrong[:40])
    assert any("clean" in key for key in counts["drop"])
    if not has_dtc:
        pytest.skip("dtc is not installed; all other rules hold")
