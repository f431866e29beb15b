# SPDX-License-Identifier: BSD-2-Clause
"""``vif`` entries and rates: records, talk and refusals as xl 4.20 gives them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.counts import sliced
from xl_configs.specs.nic import COLO_KEYS, Nic, Rate, nic_json, parse_rate, parse_vif
from xl_configs.specs.scan import SpecError


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10Mb/s", Rate(62500, 50000)),
        ("1GB/s", Rate(50_000_000, 50000)),
        ("10KB/s", Rate(500, 50000)),
        ("7b/s", Rate(0, 50000)),
        ("4294967295B/s", Rate(214748364, 50000)),
        ("10Mb/s@50us", Rate(62, 50)),
        ("10Mb/s@50u", Rate(62, 50)),
        ("1MB/s@10m", Rate(10000, 10000)),
        ("10Mb/s@20", Rate(25_000_000, 20_000_000)),
        ("1MB/s@4294s", Rate(4_294_000_000, 4_294_000_000)),
        ("4294967295GB/s@4u", Rate(17_179_869_180_000, 4)),
        # Octal ends at the 8, and what follows is not a unit then.
        ("010Mb/s", Rate(50000, 50000)),
        ("018Mb/s", Rate(0, 50000)),
        ("0178Mb/s@1", Rate(15, 1_000_000)),
        ("018b/s@1", Rate(0, 1_000_000)),
        ("8B/s@018", Rate(0, 1)),
        ("8MB/s@018s", Rate(8, 1)),
        ("1MB/s@0378m", Rate(31, 31)),
    ],
)
def test_rate(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", 22, "no rate specified in `'"),
        ("@20ms", 22, "no rate specified in `@20ms'"),
        ("10M", 22, "invalid rate in `10M'"),
        ("10mb/s@1", 22, "invalid rate in `10mb/s'"),
        ("-1Mb/s", 22, "invalid rate in `-1Mb/s'"),
        ("0x10b/s", 22, "invalid rate in `0x10b/s'"),
        ("10Mb/s\n", 22, "invalid rate in `10Mb/s\n'"),
        ("\u0661Mb/s", 22, "invalid rate in `\u0661Mb/s'"),
        ("0Mb/s@9x", 75, "rate overflow in `0Mb/s'"),
        ("08Mb/s", 75, "rate overflow in `08Mb/s'"),
        ("4294967296B/s", 75, "rate overflow in `4294967296B/s'"),
        (f"{'9' * 5000}B/s", 75, f"rate overflow in `{'9' * 5000}B/s'"),
        ("4294967295GB/s", 75, "rate overflow in `4294967295GB/s'"),
        ("4294967295GB/s@5us", 75, "rate overflow in `4294967295GB/s@5us'"),
        ("1Mb/s@", 22, "invalid replenishment interval in `'"),
        ("1Mb/s@20ms@5", 22, "invalid replenishment interval in `20ms@5'"),
        ("1Mb/s@20S", 22, "invalid replenishment interval in `20S'"),
        ("1Mb/s@0", 75, "replenishment interval overflow in `0'"),
        ("1Mb/s@09us", 75, "replenishment interval overflow in `09us'"),
        ("1Mb/s@4295s", 75, "replenishment interval overflow in `4295s'"),
        ("1Mb/s@4294967296u", 75, "replenishment interval overflow in `4294967296u'"),
    ],
)
def test_rate_refused(text: str, code: int, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_rate(text)
    assert caught.value.code == code
    assert caught.value.report == (f"cfg: config parsing error in vif: {message}",)


def seen(text: str, index: int = 0) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return nic_json(parse_vif(text, said.append), index), said


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("", {}),
        (",,,", {}),
        ("bridge=xenbr0,mac=00:16:3e:aa:bb:cc", {"bridge": "xenbr0", "mac": "00:16:3e:aa:bb:cc"}),
        (",, bridge=b ,  ip=\t1", {"bridge": "b ", "ip": "\t1"}),
        ("bridge=a,bridge=", {"bridge": ""}),
        ("model=a=b", {"model": "a=b"}),
        ("type=ioemu", {"nictype": "vif_ioemu"}),
        ("type=ioemu,type=vif", {"nictype": "vif"}),
        ("script=s,backend=d,vifname=v,vlan=7", None),
        ("gatewaydev=g,forwarddev=f", {"gatewaydev": "g", "coloft_forwarddev": "f"}),
        ("mtu=1500x", {"mtu": 1500}),
        ("mtu=4294967295", {"mtu": -1}),
        ("mtu= 09", {"mtu": 9}),
        ("devid=7", {"devid": 7}),
        ("devid=-2", {"devid": -2}),
        ("devid=4294967295", {"devid": None}),
        ("trusted", {"trusted": "True"}),
        ("trusted,untrusted", {"trusted": "False"}),
        (
            "rate=10Mb/s@20ms",
            {"rate_bytes_per_interval": 25000, "rate_interval_usecs": 20000},
        ),
        ("rate=1b/s@018", {"rate_interval_usecs": 1}),
        ("colo_compare_out=o,colo_compare_out=p", {"colo_compare_out": "p"}),
    ],
)
def test_vif(text: str, record: dict[str, Any] | None) -> None:
    if record is None:
        record = {"script": "s", "backend_domname": "d", "ifname": "v", "vlan": "7"}
    want = {"devid": 3} | record
    assert seen(text, 3) == ({k: v for k, v in want.items() if v is not None}, [])


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ("mac=00-16.3eg1 2x3!extra", "00:16:3e:01:02:03"),
        ("mac=0x1:+2: 3:\t4:100000000aa:-ffffff56", "01:02:03:04:aa:aa"),
        ("mac=01:02:03:04:05\udcff06", "01:02:03:04:05:06"),
    ],
)
def test_mac(text: str, mac: str) -> None:
    assert seen(text) == ({"devid": 0, "mac": mac}, [])


INVALID = "Invalid parameter `mac'."


@pytest.mark.parametrize(
    ("text", "record", "said"),
    [
        ("mac=aa:bb", {"mac": "aa:bb:00:00:00:00"}, [INVALID]),
        ("mac=aa:", {"mac": "aa:00:00:00:00:00"}, [INVALID]),
        ("mac=", {}, [INVALID]),
        ("mac=1:100", {"mac": "01:00:00:00:00:00"}, [INVALID]),
        ("mac=1\u00e92", {"mac": "01:00:00:00:00:00"}, [INVALID]),
        ("mac=1:2:3:4:5:6,mac=7:z", {"mac": "07:02:03:04:05:06"}, [INVALID]),
        ("mac=f,model=m", {"mac": "0f:00:00:00:00:00", "model": "m"}, [INVALID]),
        ("mac=a:b,mac=1:2:3:4:5:6", {"mac": "01:02:03:04:05:06"}, [INVALID]),
        # The reading goes on behind a comma, into the field after it.
        (
            "mac=aa:bb,cc:dd:ee:ff,model=m",
            {"mac": "aa:bb:cc:dd:ee:ff", "model": "m"},
            ["unrecognized argument `cc:dd:ee:ff'"],
        ),
        ("type=VIF,type=", {}, ["Invalid parameter `type'."] * 2),
        ("  ,x", {}, ["unrecognized argument `'", "unrecognized argument `x'"]),
        ("\tip=1,ip =1", {}, ["unrecognized argument `\tip=1'", "unrecognized argument `ip =1'"]),
        (
            "ip,trusted=1,=a",
            {},
            [f"unrecognized argument `{t}'" for t in ("ip", "trusted=1", "=a")],
        ),
        ("trusted ", {}, ["unrecognized argument `trusted '"]),
        ("accel=1", {}, ["the accel parameter for vifs is currently not supported"]),
        (
            "netdev=n",
            {"gatewaydev": "n"},
            ["the netdev parameter is deprecated, please use gatewaydev instead"],
        ),
    ],
)
def test_said(text: str, record: dict[str, Any], said: list[str]) -> None:
    assert seen(text) == ({"devid": 0} | record, said)


@pytest.mark.parametrize(
    ("text", "code", "report"),
    [
        ("x,devid=x", -1, 'xl: failed to convert "x" to number'),
        ("devid=", -1, 'xl: failed to convert "" to number'),
        ("devid=-1", -1, 'xl: failed to convert "-1" to number'),
        ("mtu=18446744073709551615", -1, 'xl: failed to convert "18446744073709551615" to number'),
        ("rate=", 22, "g: config parsing error in vif: no rate specified in `'"),
        ("rate=0b/s", 75, "g: config parsing error in vif: rate overflow in `0b/s'"),
    ],
)
def test_vif_refused(text: str, code: int, report: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_vif(text, source="g")
    assert (caught.value.code, caught.value.report) == (code, (report,))


def test_colo_keys() -> None:
    assert len(COLO_KEYS) == 48
    text = ",".join(f"{key}={number}" for number, key in enumerate(sorted(COLO_KEYS)))
    record, said = seen(text)
    assert said == []
    assert record == {"devid": 0} | {key: str(n) for n, key in enumerate(sorted(COLO_KEYS))}


PIECES = (
    *("mac=", "00:16:3e:", "type=", "vif", "rate=", "1Mb/s", "@", "20ms", "devid=", "mtu=", "-1"),
    *("bridge=", "trusted", "netdev=", ",", ",", ",", " ", "=", "08", "\u00e9", "\udcff", "\n"),
)


@sliced(1000)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=40))
def test_any_text(text: str) -> None:
    with suppress(SpecError):
        assert isinstance(parse_vif(text), Nic)
    with suppress(SpecError):
        assert 0 < parse_rate(text).rate_interval_usecs < 1 << 32


def test_corpus_rates(corpus: Path) -> None:
    lines = (corpus / "xl" / "spec-strings.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "rate"]
    assert len(rows) == 23
    for row in rows:
        got: dict[str, Any] = {"rc": 0, "report": []}
        try:
            rate = parse_rate(row["text"])
            got["value"] = {name: getattr(rate, name) for name in Rate.__slots__}
        except SpecError as error:
            got |= {"rc": error.code, "report": list(error.report)}
        assert got == {k: v for k, v in row["oracle"].items() if k != "outcome"}, row["text"]
