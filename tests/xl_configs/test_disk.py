# SPDX-License-Identifier: BSD-2-Clause
"""``disk`` entries: records and refusals as xl 4.20 gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.counts import sliced
from xl_configs.specs.disk import parse_disk
from xl_configs.specs.record import as_json
from xl_configs.specs.scan import SpecError

RAW = {"format": "raw", "vdev": "xvda", "pdev_path": "/x", "readwrite": 1}
READ = {"format": "raw", "vdev": "xvda", "pdev_path": "/x"}
CDROM = {"vdev": "hdc", "is_cdrom": 1, "removable": 1}


def outcome(text: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    try:
        return as_json(parse_disk(text)), ()
    except SpecError as error:
        return None, (*error.report, *([] if error.code == 22 else [f"code {error.code}"]))


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("/x,raw,xvda,w", RAW),
        ("/x,,xvda", RAW),
        ("/x, raw,\txvda,\n w", RAW),
        ("vdev=xvda,target=/x", RAW),
        ("vdev=xvda,target=/x,", RAW),
        ("vdev=xvda,target=/x,,", RAW | {"pdev_path": "/x,"}),
        ("vdev=xvda,target=/x,raw,a=b", RAW | {"pdev_path": "/x,raw,a=b"}),
        ("vdev=xvda,target=/x\n,", RAW),
        ("/x,raw,xvda=", RAW),
        ("/x\ny,raw,xvda", RAW | {"pdev_path": "/x\ny"}),
        # A blank is skipped unless a field that begins with it reaches beyond the line.
        ("vdev=xvda, /x", RAW),
        ("vdev=xvda, /x\ny", RAW | {"pdev_path": " /x\ny"}),
        ("vdev=xvda,file:/x\ny", RAW | {"pdev_path": "file:/x\ny"}),
        ("vdev=xvda,target=,target=/x", RAW | {"pdev_path": ",target=/x"}),
        ("vdev=,vdev=xvda,target=/x", RAW),
        (",raw,xvda", RAW | {"pdev_path": ""}),
        ("/x,raw,,", RAW | {"vdev": ""}),
        ("/x,raw,a:b:disk", RAW | {"vdev": "a:b"}),
        ("/dev/mapper/a:b,raw,xvda,r", READ | {"pdev_path": "/dev/mapper/a:b"}),
        ("phy:/x,xvda,w", RAW),
        ("tap2:tapdisk:aio:raw:/x,xvda", RAW),
        ("qcow:/x,xvda", RAW | {"format": "qcow"}),
        ("nbd:h,xvda", RAW | {"pdev_path": "h", "script": "block-nbd"}),
        ("phy:,xvda", RAW | {"pdev_path": ""}),
        (",hdc:cdrom,w", CDROM | {"pdev_path": "", "format": "empty"}),
        ("/x,raw,hdc,rw,cdrom", CDROM | {"pdev_path": "/x", "format": "raw"}),
        ("vdev=hdc,cdrom,format=qcow2", CDROM | {"format": "empty"}),
        ("vdev=xvda,cdrom,devtype=disk,target=/x", RAW),
        ("vdev=xvda,format=,format=raw,access=r,access=,target=/x", RAW),
        ("/x,raw,xvda,backendtype=qdisk", RAW | {"backend": "qdisk"}),
        ("/x,raw,xvda,specification=virtio", RAW | {"specification": "virtio"}),
        ("/x,raw,xvda,backend= d ", RAW | {"backend_domname": " d "}),
        ("/x,raw,xvda,direct-io-safe", RAW | {"direct_io_safe": True}),
        ("/x,raw,xvda,discard,no-discard", RAW | {"discard_enable": "False"}),
        ("/x,raw,xvda,trusted", RAW | {"trusted": "True"}),
        ("/x,raw,xvda,trusted,untrusted", RAW | {"trusted": "False"}),
        ("/x,raw,xvda,grant_usage=1", RAW | {"grant_usage": "True"}),
        ("/x,raw,xvda,grant_usage=0r", READ | {"grant_usage": "False"}),
        (
            "/x,raw,xvda,colo,colo-host=h,colo-port=-3z,colo-export=e,active-disk=a,hidden-disk=b",
            RAW
            | {"colo_enable": "True", "colo_host": "h", "colo_port": -3, "colo_export": "e"}
            | {"active_disk": "a", "hidden_disk": "b"},
        ),
        ("/\udcff\u20ac,raw,xvda", RAW | {"pdev_path": "/\udcff\u20ac"}),
    ],
)
def test_accepted(text: str, record: dict[str, Any]) -> None:
    assert outcome(text) == (record, ())


NO_VDEV = "no vdev specified"


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("", (NO_VDEV,)),
        ("=", (NO_VDEV,)),
        ("\n \t", (NO_VDEV,)),
        ("/x", (NO_VDEV,)),
        ("cdrom", (NO_VDEV,)),
        ("vdev=xvda", ("no target specified (and device not removable)",)),
        ("/x,xvda", ("unknown value for format: near `xvda'",)),
        ("/x,raw,xvda,w ", ("unknown value for access: near `w '",)),
        ("/x,raw,xvda,w,,", ("too many positional parameters: near `'",)),
        ("/x,raw,hdc:dvd", ("unknown deprecated type: near `dvd'",)),
        ("/a=b,raw", ("bad disk syntax: near `=b,raw'",)),
        ("/a,=b\nc", ("bad disk syntax: near `=b'",)),
        ("access=R,vdev=xvda", ("unknown value for access: near `R'",)),
        ("devtype=dvd,vdev=xvda", ("unknown value for type: near `devtype=dvd,'",)),
        ("devtype=diskette", ("unknown value for type: near `devtype=diskette'",)),
        ("colo-port=x", ("unknown value for colo_port: near `x'",)),
        ("colo-port=4294967296", ("unknown value for colo_port: near `4294967296'",)),
        ("backendtype=vbd", ("unknown value for backendtype: near `vbd'",)),
        ("specification=Xen", ("unknown value for specification: near `Xen'",)),
        ("backendtype=phy,backendtype=tap", ("backend respecified: near `tap'",)),
        ("raw:qcow2:/x,xvda", ("format respecified: near `qcow2'",)),
        ("nbd:iscsi:x,xvda", ("script respecified: near `block-iscsi'",)),
        ("/a,target=/b", ("target respecified: near `/b'",)),
        ("vdev=a,,hdc:cdrom", ("vdev respecified: near `hdc'",)),
        ("foo:/x,xvda", ("unknown deprecated disk prefix: near `foo:'",)),
        ("foo:", ("unknown deprecated disk prefix: near `foo:'",)),
        ("foo:x,xvda", ("unknown value for format: near `xvda'",)),
        ("raw:\nx,xvda", ("unknown deprecated disk prefix: near `raw:'",)),
        ("foo:\nx\ny,xvda", ("unknown value for format: near `xvda'",)),
        ("foo=1", ("unknown parameter: near `foo=1'",)),
        ("foo=1,vdev=a", ("unknown parameter: near `foo=1,'",)),
        ("foo==", ("unknown parameter: near `foo=='",)),
        ("foo=\u00e9", ("unknown parameter: near `foo=\udcc3'",)),
        ("target=\n,a", ("unknown parameter: near `target=\n,'",)),
        # After the first error, fields without a name are no longer looked at.
        (
            "foo=1,a,b,c,d,e,access=x,a=\n=b",
            (
                "unknown parameter: near `foo=1,'",
                "unknown value for access: near `x'",
                "unknown parameter: near `a=\n'",
                "bad disk syntax: near `=b'",
            ),
        ),
        (
            "format=a,foo:,format=b",
            ("unknown value for format: near `a'", "unknown deprecated disk prefix: near `foo:'"),
        ),
    ],
)
def test_refused(text: str, errors: tuple[str, ...]) -> None:
    lines = (f"cfg: config parsing error in disk specification: {e} in `{text}'" for e in errors)
    assert outcome(text) == (None, tuple(lines))


def test_source() -> None:
    with pytest.raises(SpecError) as caught:
        parse_disk("x", "guest.cfg")
    assert caught.value.report == (
        "guest.cfg: config parsing error in disk specification: no vdev specified in `x'",
    )


@pytest.mark.parametrize("text", ["=\n", "/x,=\nraw", "\n=\n,"])
def test_jam(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_disk(text)
    assert (caught.value.report, caught.value.code) == (("flex scanner jammed",), 2)


def test_jam_after_an_error() -> None:
    with pytest.raises(SpecError) as caught:
        parse_disk("access=x,=\n")
    assert caught.value.report == (
        "cfg: config parsing error in disk specification: unknown value for access: near `x'"
        " in `access=x,=\n'",
        "flex scanner jammed",
    )


@pytest.mark.parametrize(
    ("before", "after", "most"),
    [
        ("vdev=x,target=", "", 16376),
        ("vdev=x,target=", "\n,,", 16377),
        ("vdev=x,script=", ",target=/x", 16376),
        ("/", ",raw,x", 16382),
        ("phy:", ",x", 16377),
        ("/x,raw, x\n", "", 16380),
    ],
)
def test_longest(before: str, after: str, most: int) -> None:
    # The lengths from which real xl ends with SIGABRT.
    text = f"{before}{'a' * most}{after}"
    assert outcome(text)[0] is not None
    with pytest.raises(SpecError) as caught:
        parse_disk(f"{before}{'a' * (most + 1)}{after}")
    assert caught.value.crash == 6
    assert caught.value.report == ("disk: a field of 16384 bytes and more overruns a buffer of xl",)


def test_report_is_bounded() -> None:
    text = "access=x," * 100_000
    with pytest.raises(SpecError) as caught:
        parse_disk(text)
    assert len(caught.value.report) == 2
    assert sum(map(len, caught.value.report)) < 2_000_000


def test_not_text() -> None:
    with pytest.raises(SpecError, match=r"^disk: an entry that is not text$"):
        parse_disk("\ud800")


PIECES = (
    *("format=", "raw", "qcow2", "cdrom", "devtype=", "disk", "access=", "rw", "backendtype="),
    *("vdev=", "xvda", "target=", "foo=", "phy:", "raw:", "nbd:", "foo:", "/x", "hdc:cdrom"),
    *(",", ",", ",", ",", " ", "\t", "\n", "=", ":", "1", "grant_usage=1", "\u00e9", "\udcff"),
)


@sliced(1500)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=40))
def test_any_text(text: str) -> None:
    record, report = outcome(text)
    assert (record is None) is bool(report)
    if record is not None:
        assert "pdev_path" in record or record["removable"]
        assert record.get("readwrite", 0) + record.get("is_cdrom", 0) < 2


def test_corpus(corpus: Path) -> None:
    lines = (corpus / "xl" / "disk-specs.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 49
    for row in map(json.loads, lines):
        record, report = outcome(row["text"])
        assert [record] == (row["disks"] or [None]), row["text"]
        assert list(report) == row["xl"]["stderr"]


def test_corpus_libxlutil(corpus: Path) -> None:
    lines = (corpus / "xl" / "spec-strings.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "disk"]
    # That library has no fields for trust and grants.
    rows = [row for row in rows if not {"trusted", "grant"} & set(row["text"].split(","))]
    assert len(rows) > 40
    for row in rows:
        record, report = outcome(row["text"])
        assert record == row["oracle"].get("value"), row["text"]
        assert list(report) == row["oracle"]["report"]
