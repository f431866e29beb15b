# SPDX-License-Identifier: BSD-2-Clause
"""The HTML report: what it holds, that nothing of a tree gets out of its text, and a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dt_tools.blob import read
from dt_tools.platform import Platform
from dt_tools.report import html as html_module
from dt_tools.report.html import page
from dt_tools.report.jsonreport import inspect_report
from dt_tools.report.picture import MAX_MASTERS, MAX_PILLS, _cut_name, draw, text_of
from dt_tools.report.tables import MAX_ROWS, cell, table
from dt_tools.tree import Node, Tree

VOID = {"meta", "link", "br"}


class Checker(HTMLParser):
    """Collects elements and text; every element has to be closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    ids = [a["id"] for _, a in checker.tags if "id" in a]
    assert len(ids) == len(set(ids)), "ids are unique"
    links = {a["href"][1:] for t, a in checker.tags if t == "a" and a.get("href")}  # type: ignore[index]
    assert links <= set(ids), "every link has its target"
    return checker


def report_of(tree: Tree, name: str = "board.dtb") -> dict:
    return inspect_report(Platform.from_tree(tree, name))


@pytest.fixture
def tree(samples: Path) -> Tree:
    return read((samples / "board.dtb").read_bytes(), "board.dtb")


def smmus_of(checker: Checker) -> list[str]:
    return [a["data-smmu"] or "" for _, a in checker.tags if "data-smmu" in a]


def many(smmus: int, masters: int, streams: int = 1) -> Tree:
    """A board of so many SMMUs, with so many masters of so many StreamIDs behind each."""
    tree = Tree()
    root = tree.root
    root.set_strings("model", f"{smmus} SMMUs")
    root.set_cells("#address-cells", 1)
    root.set_cells("#size-cells", 1)
    for i in range(smmus):
        at = 0x1000_0000 + 0x40_0000 * i
        smmu = root.add(f"iommu@{at:x}")
        smmu.set_strings("compatible", "arm,smmu-v3")
        smmu.set_cells("reg", at, 0x20000)
        smmu.set_cells("#iommu-cells", 1)
        smmu.set_cells("phandle", 10 + i)
        if i % 7 == 3:
            smmu.set_strings("status", "disabled")
        for k in range(masters):
            base = at + 0x10_0000 + 0x1_0000 * k
            node = root.add(f"{'usb' if k % 2 else 'ethernet'}@{base:x}")
            node.set_cells("reg", base, 0x1000)
            if k == 5:
                node.set_strings("device_type", "pci")
                node.set_cells("iommu-map", 0, 10 + i, 0x1_0000 * (i + 1), 0x1_0000)
            else:
                ids = [0x20 + (i * masters + k) * 2 * streams + 2 * n for n in range(streams)]
                ids = [0x10] if k == 2 else ids
                node.set_cells("iommus", *(c for sid in ids for c in (10 + i, sid)))
            if k == 4:
                node.set_strings("status", "disabled")
    return tree


# What it holds.


def test_the_page_has_what_the_report_has(tree: Tree) -> None:
    report = report_of(tree)
    checker = parsed(page([report]))
    assert smmus_of(checker) == [smmu["path"] for smmu in report["smmus"]]
    text = "\n".join(checker.text)
    wanted = [
        report["model"],
        *(m["path"] for m in report["masters"]),
        *(r["text"] for m in report["masters"] for r in m["reasons"]),
        *(n["path"] for m in report["masters"] for n in m["needs"]),
        *(f["text"] for f in report["findings"]),
        *(r["path"] for r in report["mmio"]["regions"]),
        *(o["path"] for line in report["interrupts"]["spis"] for o in line["owners"]),
        *(e["reason"] for e in report["interrupts"]["elsewhere"]),
        "0x60020000..0x60020fff",
        "RID 0x0..0xfff",
        "0x10000..0x10fff",
        "0x600: 2 SMMUs",
        "in use on 2 SMMUs: needs vMasterIDs",
        "assignable: together",
    ]
    for part in wanted:
        assert part in text, part


def test_it_needs_nothing_else(tree: Tree) -> None:
    text = page([report_of(tree)])
    tags = {tag for tag, _ in parsed(text).tags}
    assert tags.isdisjoint({"script", "iframe", "img", "object", "embed", "base", "form"})
    assert re.findall(r"https?://|@import|url\(", text) == []
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert policy in text
    assert "prefers-color-scheme:dark" in text
    attributes = {name for _, attrs in parsed(text).tags for name in attrs}
    assert not [name for name in attributes if name.startswith("on")]


def test_pictures_are_well_formed_and_inside_their_frame(corpus: Path, tree: Tree) -> None:
    reports = [report_of(tree), report_of(many(50, 6))]
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        reports.append(report_of(read(path.read_bytes(), path.name), path.name))
    for report in reports:
        pages = draw(report, "b0")
        assert [p for one in pages for _, p in one.smmus] == [s["path"] for s in report["smmus"]]
        for one in pages:
            root = ElementTree.fromstring(one.svg)
            width, height = float(root.attrib["width"]), float(root.attrib["height"])
            for rect in root.iter("rect"):
                x, y, w, h = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
                assert x >= 0
                assert y >= 0
                assert x + w <= width
                assert y + h <= height
            for text in root.iter("text"):
                assert 0 <= float(text.attrib["y"]) <= height
                size = 7.6 if text.attrib.get("class") == "name" else 6.5
                middle = text.attrib.get("class") == "id"
                left = float(text.attrib["x"])
                if text.attrib.get("class", "") in ("name", "small"):
                    assert left + len(text.text or "") * size <= width + 30, text.text
                assert not middle or left < width


def test_boxes_of_a_page_do_not_overlap() -> None:
    for one in draw(report_of(many(20, 7, 3)), "b0"):
        root = ElementTree.fromstring(one.svg)
        for kind in ("smmu", "box"):
            spans = []
            for group in root.iter("g"):
                if kind == "box" and "bus" in (group.attrib.get("class") or "").split():
                    continue  # drawn as two boxes, one behind the other
                for rect in group.findall("rect"):
                    if rect.attrib.get("class") == kind:
                        top = float(rect.attrib["y"])
                        spans.append((top, top + float(rect.attrib["height"])))
            spans.sort()
            assert all(a[1] < b[0] for a, b in pairwise(spans))


def test_many_smmus_are_paged_and_have_a_map() -> None:
    checker = parsed(page([report_of(many(50, 6))]))
    assert len(smmus_of(checker)) == 50
    pages = [attrs for tag, attrs in checker.tags if attrs.get("class") == "page"]
    assert len(pages) > 5
    opened = [attrs for attrs in pages if "open" in attrs]
    assert 1 <= len(opened) < len(pages)
    assert sum((a.get("href") or "").startswith("#b0-s") for _, a in checker.tags) == 50


def test_what_is_too_much_is_counted() -> None:
    text = page([report_of(many(1, MAX_MASTERS + 7, MAX_PILLS + 3))])
    assert "and 7 more masters, in the table" in text
    assert "and 3 more" in text
    rows = [[cell(number)] for number in range(MAX_ROWS + 5)]
    assert f"The first {MAX_ROWS} of {MAX_ROWS + 5}; the JSON report has all." in table(["n"], rows)


def test_several_boards_have_an_index(tree: Tree) -> None:
    reports = [report_of(tree, "a.dtb"), report_of(many(2, 3), "b.dtb"), report_of(Tree(), "c.dtb")]
    text = page(reports)
    checker = parsed(text)
    links = [a["href"] for tag, a in checker.tags if tag == "a"]
    assert links[:3] == ["#b0", "#b1", "#b2"]
    assert "vsmmu inspect: 3 boards" in text
    assert "The board has no Arm SMMU." in text
    assert len(smmus_of(checker)) == 5


def test_the_title_names_a_board_that_is_alone(tree: Tree) -> None:
    tree.root.set_strings("model", "<b>&" + "x" * 300)
    text = page([report_of(tree, "a.dtb")])
    title = re.search("<title>(.*?)</title>", text)
    assert title is not None
    assert title[1].startswith("vsmmu inspect: a.dtb, &lt;b&gt;&amp;xxx")
    assert title[1].endswith("..")
    assert len(title[1]) < 200


def test_a_long_name_keeps_its_unit_address() -> None:
    assert _cut_name("iommu@2000000", 20) == "iommu@2000000"
    assert _cut_name("a-very-long-controller-name@2000000", 20) == "a-very-lon..@2000000"
    assert _cut_name("name@" + "f" * 40, 20) == "name@" + "f" * 13 + ".."
    assert _cut_name("x" * 40, 20) == "x" * 18 + ".."


def test_a_page_of_many_masters_is_bounded() -> None:
    tree = many(1, 2)
    for at in range(3_000):
        node = tree.root.add(f"{'n' * 25}@{at:x}")
        node.set_cells("reg", 0x500_0000, 0x10)
        node.set_cells("iommus", 10, 7)
    assert len(page([report_of(tree)])) < 10_000_000


def test_the_same_bytes_each_time(tree: Tree) -> None:
    assert len({page([report_of(tree), report_of(many(9, 5))]) for _ in range(3)}) == 1


def test_disabled_things_are_marked(tree: Tree) -> None:
    text = page([report_of(many(4, 6))])
    assert text.count('class="block off"') == 1
    assert text.count('class="master off"') == 4 + 1, "and the legend"
    assert text.count('class="master bus"') == 4


def test_masters_outside_the_picture_are_counted() -> None:
    tree = many(1, 1)
    other = tree.root.add("mmu@1")
    other.set_strings("compatible", "test,mmu")
    other.set_cells("#iommu-cells", 0)
    other.set_cells("phandle", 99)
    tree.root.add("gpu").set_cells("iommus", 99)
    text = page([report_of(tree)])
    assert "1 master is behind no Arm SMMU and not in the picture" in text
    tree.root.add("npu").set_cells("iommus", 99)
    assert "2 masters are behind no Arm SMMU" in page([report_of(tree)])


# Hostile text.

NASTY = "</title></script><script>alert(1)</script><svg onload=x>\"' onmouseover='x' &amp;<!--"


def test_nothing_of_a_tree_becomes_markup(tree: Tree) -> None:
    clean_tags = parsed(page([report_of(tree)])).tags
    root = tree.root

    def nasty(node: Node, name: str) -> None:
        node.props[name] = NASTY.encode() + b"\x01\xff\x1b[2J\n\0"

    soc = root.children["soc"]
    nasty(root, "model")
    for node in (root, soc.children["crypto@60000000"], soc.children["iommu@50000000"]):
        nasty(node, "compatible")
    smmu = soc.children["iommu@50000000"]
    smmu.props["compatible"] = b"arm,smmu-v3\0" + smmu.props["compatible"]
    nasty(smmu, "interrupt-names")
    nasty(soc.children["ethernet@60010000"], "interrupt-names")
    nasty(soc.children["gpu@60040000"], "status")
    nasty(soc.children["iommu@51000000"], "status")
    # A blob cannot have such a name, but nothing here depends on that.
    odd = soc.add(f"x@1{NASTY}")
    odd.props.update(soc.children["crypto@60000000"].props)
    text = page([report_of(tree, f"{NASTY}.dtb")])
    checker = parsed(text)
    kinds = {tag for tag, _ in checker.tags}
    assert kinds <= {tag for tag, _ in clean_tags}
    names = {name for _, attrs in checker.tags for name in attrs}
    assert names <= {name for _, attrs in clean_tags for name in attrs}
    assert "alert(1)" in "".join(checker.text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\xff]", text)
    for one in draw(report_of(tree), "b0"):
        ElementTree.fromstring(one.svg)


def test_text_of() -> None:
    assert text_of("a<b>&\"'\n\xe9") == "a&lt;b&gt;&amp;&quot;&#x27;\\n\\xe9"


# A browser.


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((place for name in names if (place := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on PATH")
    return found


def browse(place: Path, file: Path, *options: str) -> tuple[str, str]:
    """What the browser writes to stdout and stderr for a file."""
    done = subprocess.run(
        [
            chromium(),
            *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--disable-dev-shm-usage", f"--user-data-dir={place / 'profile'}"),
            *options,
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def test_a_browser_renders_every_smmu_without_an_error(tmp_path: Path, tree: Tree) -> None:
    hostile = tree.copy()
    hostile.root.props["model"] = NASTY.encode() + b"\0"
    reports = [report_of(tree), report_of(hostile), report_of(many(50, 6))]
    file = tmp_path / "report.html"
    file.write_text(page(reports))
    dom, talk = browse(tmp_path, file, "--dump-dom")
    assert ":CONSOLE" not in talk, talk
    found = smmus_of(parsed(dom))
    assert found == [smmu["path"] for report in reports for smmu in report["smmus"]]


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_it_light_and_dark(tmp_path: Path, tree: Tree, dark: bool) -> None:
    file, shot = tmp_path / "report.html", tmp_path / "report.png"
    file.write_text(page([report_of(tree)]))
    mode = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    options = ["--hide-scrollbars", "--window-size=900,480", f"--screenshot={shot}", mode]
    _, talk = browse(tmp_path, file, *options)
    assert ":CONSOLE" not in talk, talk
    shown = _pixels(shot)
    assert shown[0] == ((0x12, 0x15, 0x1A) if dark else (0xF6, 0xF7, 0xF9))
    assert len(set(shown)) > 30
    accent = (0x58, 0xA0, 0xFF) if dark else (0x1F, 0x6F, 0xEB)
    assert shown.count(accent) > 100, "the bars of the SMMUs"


def _pixels(file: Path) -> list[tuple[int, int, int]]:
    """Pixels of an 8-bit RGB or RGBA PNG that is not interlaced."""
    import zlib

    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed = 8, b""
    width = height = channels = 0
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height = int.from_bytes(body[:4]), int.from_bytes(body[4:8])
            assert body[8] == 8
            channels = {2: 3, 6: 4}[body[9]]
        elif kind == b"IDAT":
            packed += body
        at += size + 12
    raw = zlib.decompress(packed)
    stride = width * channels
    before = bytearray(stride)
    pixels: list[tuple[int, int, int]] = []
    for row in range(height):
        start = row * (stride + 1)
        line = bytearray(raw[start + 1 : start + 1 + stride])
        _unfilter(raw[start], line, before, channels)
        pixels += zip(line[0::channels], line[1::channels], line[2::channels], strict=True)
        before = line
    return pixels


def _unfilter(kind: int, line: bytearray, before: bytearray, step: int) -> None:
    """Undo a PNG filter in place."""
    if kind == 0:
        return
    for i in range(len(line)):
        left = line[i - step] if i >= step else 0
        up = before[i]
        corner = before[i - step] if i >= step else 0
        if kind == 1:
            guess = left
        elif kind == 2:
            guess = up
        elif kind == 3:
            guess = (left + up) // 2
        else:
            p = left + up - corner
            guess = min((left, up, corner), key=lambda value: abs(p - value))
        line[i] = (line[i] + guess) & 0xFF


def test_the_style_has_both_schemes() -> None:
    light, _, dark = html_module.CSS.partition("@media(prefers-color-scheme:dark)")
    names = set(re.findall(r"(--[a-z-]+):", light.partition("}")[0]))
    assert names == set(re.findall(r"(--[a-z-]+):", dark.partition("}}")[0]))
    assert set(re.findall(r"var\((--[a-z-]+)\)", html_module.CSS)) == names
