# SPDX-License-Identifier: BSD-2-Clause
"""Agreement with recorded outcomes of libxlutil 4.17 and of xl 4.20 for Arm."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from xl_configs import ConfigError, GuestConfig, PciSpec, SpecError, load, parse, parse_spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xl_configs import ParseResult


def rows(corpus: Path, name: str) -> list[dict[str, Any]]:
    place = corpus / "xl" / name
    if not place.is_file():
        pytest.skip(f"no {place}")
    return [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]


def depth(value: Any) -> int:
    levels, layer = 0, [value]
    while layer := [x for x in layer if not isinstance(x, str)]:
        levels += 1
        layer = [x for inner in layer for x in inner]
    return levels


def thawed(value: Any) -> Any:
    if depth(value) > 200:
        return f"<list nested {depth(value)} deep>"
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return [thawed(x) for x in value]


def as_libxlutil_keeps_them(result: ParseResult) -> Iterator[dict[str, Any]]:
    """Its list of settings: a ``+=`` moves the elements of the earlier list into the new one."""
    kept: list[dict[str, Any]] = []
    latest: dict[str, dict[str, Any]] = {}
    for setting, total in result.accumulated():
        row = {
            "line": setting.line,
            "name": setting.name,
            "op": setting.op,
            "value": thawed(total),
        }
        if setting.op == "+=" and setting.name in latest and isinstance(total, tuple):
            latest[setting.name]["value"] = []
        latest[setting.name] = row
        kept.append(row)
    return iter(kept)


def assert_same(data: bytes, recorded: dict[str, Any], name: str) -> None:
    result = parse(data)
    if recorded["outcome"] == "abort":
        assert not result.ok, name
        return
    assert result.ok is (recorded["outcome"] == "ok"), name
    assert list(result.report) == recorded["report"], name
    if result.ok:
        assert {k: thawed(v) for k, v in result.effective.items()} == recorded["effective"], name
        assert list(as_libxlutil_keeps_them(result)) == recorded["settings"], name


@pytest.mark.parametrize("name", ["syntax-adversarial.jsonl", "syntax-random.jsonl"])
def test_hostile_syntax(corpus: Path, name: str) -> None:
    cases = rows(corpus, name)
    assert len(cases) > 200
    for case in cases:
        assert_same(base64.b64decode(case["b64"]), case["oracle"], case["id"])


def test_real_configurations(corpus: Path) -> None:
    cases = rows(corpus, "real.jsonl")
    assert len(cases) >= 39
    for case in cases:
        data = (corpus / "xl" / "real" / case["file"]).read_bytes()
        assert_same(data, case["libxlutil"], case["file"])


def test_pci_entries(corpus: Path) -> None:
    cases = [case for case in rows(corpus, "spec-strings.jsonl") if case["kind"] == "pci"]
    assert len(cases) >= 20
    for case in cases:
        recorded = case["oracle"]
        got: tuple[int, list[str], PciSpec | None]
        try:
            got = 0, [], parse_spec("pci", case["text"])
        except SpecError as error:
            got = error.code, list(error.report), None
        value = None if recorded["rc"] else PciSpec(**recorded["value"])
        assert got == (recorded["rc"], recorded["report"], value), case["id"]


# What xl reads and this package leaves alone: the cases that fail there because of it.
ELSEWHERE = {
    "cpus",
    "ioports",
    "vif",
    "sve",
    "llc_colors",
    "uuid",
    "grant",
    "p9",
    "vdispl",
    "vsnd",
    "vkb",
    "channel",
    "vtpm",
    "usb",
    "bootloader_args",
    "vnuma",
    "misc",
}
# Where this package is stricter than xl, crashes of xl aside.
STRICTER = re.compile(r"memory=-?[0-9]+ is out of range")


def fields(config: GuestConfig) -> dict[str, Any]:
    """The part of libxl's domain configuration that a GuestConfig has, in its spelling."""
    unset = {None, "default", "none", ""}
    arm = {
        "gic_version": config.gic_version,
        "vuart": config.vuart,
        # All ones stands for "not given" in libxl.
        "nr_spis": 0xFFFFFFFF if config.nr_spis is None else config.nr_spis,
    }
    return {
        "name": config.name,
        "type": config.type,
        "passthrough": config.passthrough,
        "memory": config.memory_mib * 1024,
        "tee": config.tee,
        "kernel": config.kernel,
        "ramdisk": config.ramdisk,
        "device_tree": config.device_tree,
        "cmdline": config.cmdline,
        "irqs": list(config.irqs),
        "iomem": [(r.start, r.count, r.gfn) for r in config.iomem],
        "dtdevs": list(config.dtdev),
        "pcidevs": [(p.domain, p.bus, p.dev, p.func, p.name, p.permissive) for p in config.pci],
        "arch_arm": {k: v for k, v in arm.items() if v not in unset},
    }


def recorded_fields(domain: dict[str, Any]) -> dict[str, Any]:
    build, create = domain["b_info"], domain["c_info"]
    ours = ("gic_version", "vuart", "nr_spis")
    ranges = [(r.get("start", 0), r.get("number", 0), r.get("gfn")) for r in build.get("iomem", ())]
    return {
        "name": create.get("name", ""),
        "type": create["type"],
        "passthrough": create.get("passthrough", "default"),
        "memory": build.get("target_memkb", 32 * 1024),
        "tee": build.get("tee", "none"),
        "kernel": build.get("kernel"),
        "ramdisk": build.get("ramdisk"),
        "device_tree": build.get("device_tree"),
        "cmdline": build.get("cmdline"),
        "irqs": build.get("irqs", []),
        "iomem": [(s, n, s if gfn is None else gfn) for s, n, gfn in ranges],
        "dtdevs": [d["path"] for d in domain.get("dtdevs", ())],
        "pcidevs": [
            (
                *(p.get(k, 0) for k in ("domain", "bus", "dev", "func")),
                p.get("name"),
                p.get("permissive") in (True, "True"),
            )
            for p in domain.get("pcidevs", ())
        ],
        "arch_arm": {"nr_spis": 0xFFFFFFFF}
        | {k: v for k, v in build["arch_arm"].items() if k in ours},
    }


def outcome(case: dict[str, Any]) -> tuple[int, list[str], GuestConfig | None]:
    """Exit code, what is printed, and the guest unless it is refused."""
    data = case["text"].encode("utf-8", "surrogateescape")
    try:
        config = load(data, "cfg", case.get("extra") or ())
    except ConfigError as error:
        return error.exit_code, list(error.report), None
    return 0, [warning.report for warning in config.warnings if warning.report], config


def test_meaning_agrees_with_xl_for_arm(corpus: Path) -> None:
    compared = 0
    for case in rows(corpus, "semantics-arm64.jsonl"):
        recorded = case["xl"]
        code, printed, config = outcome(case)
        if recorded["rc"] < 0 or (printed and STRICTER.fullmatch(printed[0])):
            continue
        if case["key"] in ELSEWHERE and (recorded["rc"] or recorded["stderr"]):
            continue
        assert (code, printed) == (recorded["rc"], recorded["stderr"]), case["id"]
        if config is not None and "firmware=" not in case["text"]:
            assert fields(config) == recorded_fields(recorded["config"]), case["id"]
        compared += 1
    assert compared >= 210
