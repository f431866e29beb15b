# SPDX-License-Identifier: BSD-2-Clause
"""Device entries: each record and each refusal is what xl 4.20 makes of the same text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.counts import sliced
from xl_configs.specs.devices import (
    P9,
    Channel,
    ChannelPty,
    ChannelSocket,
    Hostdev,
    Pvcallsif,
    Usbctrl,
    Usbdev,
    Virtio,
    Vtpm,
    parse_channel,
    parse_p9,
    parse_pvcalls,
    parse_usbctrl,
    parse_usbdev,
    parse_virtio,
    parse_vtpm,
)
from xl_configs.specs.display import (
    Connector,
    Sdl,
    Vdispl,
    Vfb,
    Vkb,
    Vnc,
    parse_vdispl,
    parse_vfb,
    parse_vkb,
)
from xl_configs.specs.record import as_json
from xl_configs.specs.scan import SpecError
from xl_configs.specs.sound import Vsnd, VsndParams, VsndPcm, VsndStream, parse_vsnd

if TYPE_CHECKING:
    from collections.abc import Callable

UUID = "00112233-4455-6677-8899-aabbccddeeff"
PARSERS = {
    "p9": parse_p9,
    "vtpm": parse_vtpm,
    "vdispl": parse_vdispl,
    "pvcalls": parse_pvcalls,
    "channel": parse_channel,
    "vfb": parse_vfb,
    "vkb": parse_vkb,
    "usbctrl": parse_usbctrl,
    "usbdev": parse_usbdev,
    "virtio": parse_virtio,
}


def refusal(parse: Callable[..., Any], *arguments: Any) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse(*arguments)
    return caught.value


@pytest.mark.parametrize(
    ("text", "record"),
    [
        (
            "tag=a,path=/p,security_model=none,backend=DomD",
            P9(backend_domname="DomD", tag="a", path="/p", security_model="none"),
        ),
        (" tag\t= a b ,,path=x=y", P9(tag="a b", path="x=y")),
        ("tag= ", P9(tag="")),
        ("tag=a,tag=b", P9(tag="b")),
        ("type=XEN_9pfsd", P9(type="xen_9pfsd")),
        ("max-files=4294967297,max-space=2147483648", P9(max_files=1, max_space=-(1 << 31))),
        ("max-open-files=010,max-files=0x10,max-space=7G", P9(max_open_files=10, max_space=7)),
        ("max-files=-18446744073709551615", P9(max_files=1)),
        ("auto-delete=0x10", P9(auto_delete=True)),
        ("auto-delete=yes", P9()),
        ("auto-delete=08", P9()),
    ],
)
def test_p9(text: str, record: P9) -> None:
    assert parse_p9(text) == record


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" ", "failed to parse 9pfs configuration:  "),
        ("tag=a,path", "failed to parse 9pfs configuration: path"),
        ("tag=", "failed to parse 9pfs configuration: tag="),
        ("Tag=a", "Unknown 9pfs parameter 'Tag'"),
        ("max_files=1", "Unknown 9pfs parameter 'max_files'"),
        ("=x", "Unknown 9pfs parameter ''"),
        ("type=Xen", "failed to parse 9pfs type: Xen"),
        ("type={0}", "failed to parse 9pfs type: {0}"),
        ("max-files=x1", 'xl: failed to convert "x1" to number'),
        ("max-files= ", 'xl: failed to convert "" to number'),
        ("max-files=-1", 'xl: failed to convert "-1" to number'),
        (
            "max-files=18446744073709551616",
            'xl: failed to convert "18446744073709551616" to number',
        ),
    ],
)
def test_p9_refused(text: str, line: str) -> None:
    assert refusal(parse_p9, text).report == (line,)


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("backend=x", Vtpm("x")),
        ("backend=,", Vtpm("")),
        (" uuid=00112233-4455-6677-8899-AABBCCDDEEFF,  backend=a =b ", Vtpm("a =b ", uuid=UUID)),
        ("backend=a,stop,uuid=junk,nonsense=1", Vtpm("a")),
    ],
)
def test_vtpm(text: str, record: Vtpm) -> None:
    assert parse_vtpm(text) == record


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "vtpm spec missing required backend field!"),
        ("stop,backend=a", "vtpm spec missing required backend field!"),
        ("backend=a,\tuuid=", "Unknown string `\tuuid' in vtpm spec"),
        ("Backend=a", "Unknown string `Backend' in vtpm spec"),
        (f"backend=a,uuid={UUID} ", f"Failed to parse vtpm UUID: {UUID} "),
        (f"uuid={UUID}\n", f"Failed to parse vtpm UUID: {UUID}\n"),
        (f"uuid={UUID[:-1]}", f"Failed to parse vtpm UUID: {UUID[:-1]}"),
        (f"uuid={UUID[:-1]}٣", f"Failed to parse vtpm UUID: {UUID[:-1]}٣"),
    ],
)
def test_vtpm_refused(text: str, line: str) -> None:
    assert refusal(parse_vtpm, text).report == (line,)


@pytest.mark.parametrize(
    ("text", "record"),
    [
        (
            "backend=b,be-alloc=1,connectors=a:640x480;;:1x1;",
            Vdispl("b", None, True, (Connector("a", 640, 480), Connector("", 1, 1))),
        ),
        ("connectors=a:+5x -6junk", Vdispl(connectors=(Connector("a", 5, 0xFFFFFFFA),))),
        ("connectors=a:0x10", Vdispl(connectors=(Connector("a", 0, 10),))),
        (
            "connectors=a:18446744073709551616x4294967298",
            Vdispl(connectors=(Connector("a", 0xFFFFFFFF, 2),)),
        ),
        ("connectors=x:1x1,connectors=a:1x1", Vdispl(connectors=(Connector("a", 1, 1),))),
        ("connectors= a:1x1,be-alloc=0", Vdispl(connectors=(Connector(" a", 1, 1),))),
    ],
)
def test_vdispl(text: str, record: Vdispl) -> None:
    said: list[str] = []
    assert parse_vdispl(text, said.append) == record
    assert said == []


@pytest.mark.parametrize("size", ["x5", "-", "+x", "b:5x5", "é"])
def test_vdispl_goes_on_at_a_size_without_a_number(size: str) -> None:
    said: list[str] = []
    vdispl = parse_vdispl(f"connectors=a:1x1;b:{size};c:2x2,backend=d", said.append)
    assert vdispl == Vdispl("d", connectors=(Connector("a", 1, 1), Connector("b"), Connector()))
    assert said == ["Can't parse connector resolution"]


@pytest.mark.parametrize("size", [" ", "5", "5x", "5X5", "5 x5", "5x+", "5xx5"])
def test_vdispl_refuses_half_a_size(size: str) -> None:
    report = refusal(parse_vdispl, f"connectors=a:{size}").report
    assert report == ("Can't parse connector resolution",)


@pytest.mark.parametrize(
    ("text", "line", "crash"),
    [
        ("", "At least one connector should be specified.", 0),
        ("backend=b", "At least one connector should be specified.", 0),
        ("connectors", 'Unknown string "connectors" in vdispl spec', 0),
        ("be_alloc=1", 'Unknown string "be_alloc=1" in vdispl spec', 0),
        (",  ", 'Unknown string "" in vdispl spec', 0),
        ("connectors=", "vdispl: connectors= lists none; xl crashes", 11),
        ("connectors=;", "vdispl: connectors= lists none; xl crashes", 11),
        ("connectors=5x5", 'vdispl: connector "5x5" is not ID:WIDTHxHEIGHT; xl crashes', 6),
        ("connectors=a:1x1;b:", 'vdispl: connector "b:" is not ID:WIDTHxHEIGHT; xl crashes', 6),
    ],
)
def test_vdispl_refused(text: str, line: str, crash: int) -> None:
    error = refusal(parse_vdispl, text)
    assert (error.report, error.crash) == ((line,), crash)


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("", Pvcallsif()),
        ("backend=a,backend=b c", Pvcallsif("b c")),
        ("stop,Backend=a", Pvcallsif()),
    ],
)
def test_pvcalls(text: str, record: Pvcallsif) -> None:
    assert parse_pvcalls(text) == record


def test_pvcalls_refused() -> None:
    assert refusal(parse_pvcalls, "backend=a, b=c").report == (
        "Unknown string `b' in pvcalls spec",
    )


@pytest.mark.parametrize(
    ("text", "record", "said"),
    [
        ("connection=pty,path=/x", Channel(pty=ChannelPty()), []),
        (
            " name = n ,backend=b,connection=pty,connection=socket,path=/x",
            Channel("b", "n", socket=ChannelSocket("/x")),
            [],
        ),
        ("path= ,connection=socket", Channel(socket=ChannelSocket("")), []),
        (
            "Name=n,connection=pty,=1",
            Channel(pty=ChannelPty()),
            [
                "unknown channel parameter 'Name', ignoring",
                "unknown channel parameter '', ignoring",
            ],
        ),
    ],
)
def test_channel(text: str, record: Channel, said: list[str]) -> None:
    lines: list[str] = []
    assert parse_channel(text, lines.append) == record
    assert lines == said


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name=n", "channel has unknown 'connection'"),
        ("connection=PTY", "unknown channel connection 'PTY'"),
        ("connection=unknown", "unknown channel connection 'unknown'"),
        ("connection=socket", "channel connection 'socket' requires path=.."),
        ("connection=pty,name=", "failed to parse channel configuration: name="),
        ("pty", "failed to parse channel configuration: pty"),
    ],
)
def test_channel_refused(text: str, line: str) -> None:
    assert refusal(parse_channel, text).report == (line,)


def test_channel_says_what_came_before_the_refusal() -> None:
    said: list[str] = []
    with pytest.raises(SpecError, match=r"^unknown channel connection 'x'$"):
        parse_channel("a=1,connection=x,b=1", said.append)
    assert said == ["unknown channel parameter 'a', ignoring"]


@pytest.mark.parametrize("kind", ["p9", "channel"])
@pytest.mark.parametrize("text", ["", ",", ",,,"])
def test_no_field_at_all(kind: str, text: str) -> None:
    error = refusal(PARSERS[kind], text)
    assert (error.report, error.crash) == ((f"{kind}: the entry has no field; xl crashes",), 11)


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("", Vfb()),
        (
            "vnc=1,vnclisten=a:1,vncpasswd=,vncdisplay=-3,vncunused=no,keymap=k",
            Vfb(vnc=Vnc(True, "a:1", "", -3, False), keymap="k"),
        ),
        (
            " sdl=-1,opengl=0x1,display=:0 ,xauthority=/x=y",
            Vfb(sdl=Sdl(True, False, ":0 ", "/x=y")),
        ),
        ("vncdisplay=4294967297,Vnc=1,vnc2=1,\tsdl=1", Vfb(vnc=Vnc(display=1))),
        ("vncdisplay=99999999999999999999", Vfb(vnc=Vnc(display=-1))),
        ("vnc=4294967296,sdl=9223372036854775808", Vfb(vnc=Vnc(False), sdl=Sdl(True))),
        ("keymap=a,stop,keymap=b", Vfb(keymap="a")),
    ],
)
def test_vfb(text: str, record: Vfb) -> None:
    assert parse_vfb(text) == record


@pytest.mark.parametrize(
    ("text", "record"),
    [
        (" backend-type=QEMU", Vkb(backend_type="qemu")),
        (
            "backend=b,backend-type=linux,unique-id= u,feature-disable-keyboard=1,"
            "feature-disable-pointer=-1,feature-abs-pointer=0x0,feature-raw-pointer=010",
            Vkb("b", None, "linux", " u", True, True, False, True),
        ),
        (
            "width=-1,height=4294967296,backend-type=unknown,backend-type=linux",
            Vkb(backend_type="linux", width=0xFFFFFFFF),
        ),
        (
            "backend-type=qemu,multi-touch-num-contacts=3,feature-multi-touch=0",
            Vkb(backend_type="qemu", feature_multi_touch=True, multi_touch_num_contacts=3),
        ),
        ("backend-type=qemu,multi-touch-width=0", Vkb(backend_type="qemu")),
    ],
)
def test_vkb(text: str, record: Vkb) -> None:
    assert parse_vkb(text) == record


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "backend-type should be set in vkb spec"),
        ("backend-type=Unknown,width=1", "backend-type should be set in vkb spec"),
        ("backend-type=x", 'Unknown backend_type "x" in vkb spec'),
        ("backend-type=linux ", 'Unknown backend_type "linux " in vkb spec'),
        ("backend_type=linux", 'Unknown string "backend_type=linux" in vkb spec'),
        ("\twidth=1", 'Unknown string "\twidth=1" in vkb spec'),
        (" ", 'Unknown string "" in vkb spec'),
        (
            "backend-type=qemu,feature-multi-touch=1,multi-touch-width=4294967296",
            "multi-touch-width, multi-touch-height, multi-touch-num-contacts should be set for "
            "multi touch in vkb spec",
        ),
    ],
)
def test_vkb_refused(text: str, line: str) -> None:
    assert refusal(parse_vkb, text).report == (line,)


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("", Usbctrl()),
        ("type=QUSB, version=3,ports=-4", Usbctrl("qusb", None, 3, -4)),
        ("version=0x2,ports=2147483648", Usbctrl(ports=-(1 << 31))),
    ],
)
def test_usbctrl(text: str, record: Usbctrl) -> None:
    assert parse_usbctrl(text) == record


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("", Usbdev()),
        (
            "type=HostDev,hostbus=300,hostaddr=0x17,controller=0,port=08",
            Usbdev(0, 8, Hostdev(44, 23)),
        ),
        ("hostbus=3,controller=-2", Usbdev(-2)),
        ("hostaddr=-1,type=hostdev", Usbdev(hostdev=Hostdev(0, 255))),
    ],
)
def test_usbdev(text: str, record: Usbdev) -> None:
    assert parse_usbdev(text) == record


@pytest.mark.parametrize(
    ("kind", "text", "line"),
    [
        ("usbctrl", "type=usb", "Invalid usb controller type 'usb'"),
        ("usbctrl", "ports", "Unknown string `ports' in usbctrl spec"),
        ("usbctrl", " , Ports=1", "Unknown string `' in usbctrl spec"),
        ("usbdev", "type=x", "Invalid usb device type: (null)"),
        ("usbdev", "type=hostdev ", "Invalid usb device type: (null)"),
        ("usbdev", "hostbus =1", "Unknown string `hostbus =1' in usbdev spec"),
    ],
)
def test_usb_refused(kind: str, text: str, line: str) -> None:
    assert refusal(PARSERS[kind], text).report == (line,)


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("", Virtio()),
        (
            " backend=DomD,type=virtio,device22,transport=MMIO,grant_usage=0",
            Virtio("DomD", "virtio,device22", "mmio", False),
        ),
        ("type=virtio,transport=mmio", Virtio(type="virtio,transport=mmio")),
        ("type=virtio,, device", Virtio(type="virtio, device")),
        ("type=virtiofs,x,type=Virtio", Virtio(type="Virtio")),
        ("transport=mmio,transport=unknown", Virtio()),
        ("grant_usage=-1,type=", Virtio(type="", grant_usage=True)),
        ("grant_usage=yes", Virtio(grant_usage=False)),
        ("grant_usage=4294967296", Virtio(grant_usage=True)),
    ],
)
def test_virtio(text: str, record: Virtio) -> None:
    assert parse_virtio(text) == record


@pytest.mark.parametrize(
    ("text", "report", "crash"),
    [
        ("x", ('Unknown string "x" in virtio spec',), 0),
        ("\ttype=x", ('Unknown string "\ttype=x" in virtio spec',), 0),
        ("transport=pci", (), 0),
        (
            " type=virtio,",
            ('virtio: "type=virtio" needs another field, as in type=virtio,device22; xl crashes',),
            11,
        ),
    ],
)
def test_virtio_refused(text: str, report: tuple[str, ...], crash: int) -> None:
    error = refusal(parse_virtio, text)
    assert (error.report, error.crash) == (report, crash)


def test_vsnd() -> None:
    items = [
        "CARD,backend=b, short-name=s,long-name= l,sample-rates=8000;0x10; -1,channels-min=1",
        "",
        "pcm,name=p,sample-formats=S16_LE;;iec958_subframe_be,buffer-size=010",
        "stream,type=P,unique-id=1",
        " Stream,channels-max=4294967298",
        "pcm",
        "card,short-name=t",
    ]
    first = VsndPcm(
        "p",
        VsndParams(sample_formats=("s16_le", "iec958_subframe_be"), buffer_size=8),
        (VsndStream("1", "p"), VsndStream(params=VsndParams(channels_max=2))),
    )
    params = VsndParams(sample_rates=(8000, 16, 0xFFFFFFFF), channels_min=1)
    assert parse_vsnd(items) == Vsnd("b", None, "t", " l", params, (first, VsndPcm()))


def test_vsnd_stream_opens_a_pcm() -> None:
    assert parse_vsnd([]) == parse_vsnd([","]) == Vsnd()
    card = Vsnd(pcms=(VsndPcm(streams=(VsndStream(type="c"),)),))
    assert parse_vsnd(["stream,type=c"]) == card


def test_vsnd_formats() -> None:
    names = [
        *("S8", "U8", "S16_LE", "S16_BE", "U16_LE", "U16_BE", "S24_LE", "S24_BE", "U24_LE"),
        *("U24_BE", "S32_LE", "S32_BE", "U32_LE", "U32_BE", "F32_LE", "F32_BE", "F64_LE"),
        *("F64_BE", "IEC958_SUBFRAME_LE", "IEC958_SUBFRAME_BE", "MU_LAW", "A_LAW", "IMA_ADPCM"),
        *("MPEG", "GSM"),
    ]
    card = parse_vsnd(["card,sample-formats=" + ";".join(names)])
    assert card.params.sample_formats == tuple(name.lower() for name in names)


@pytest.mark.parametrize(
    ("items", "line", "crash"),
    [
        (["card "], "Invalid key: card ", 0),
        ([" "], "Invalid key: ", 0),
        (["name=x"], "Invalid key: name=x", 0),
        (["card,name=x"], "Invalid parameter: name=x", 0),
        (["pcm,short-name=x"], "Invalid parameter: short-name=x", 0),
        (["stream,type"], "Invalid parameter: type", 0),
        (["stream,buffer-size"], "Invalid parameter: buffer-size", 0),
        (["pcm, "], "Invalid parameter: ", 0),
        (["stream,type=x"], "Invalid stream type: x", 0),
        (["pcm,sample-formats=s8; u8"], "Invalid pcm format:  u8", 0),
        (["card,sample-rates="], "vsnd: sample-rates= lists none; xl crashes", 11),
        (["card", "pcm,sample-formats=;"], "vsnd: sample-formats= lists none; xl crashes", 11),
    ],
)
def test_vsnd_refused(items: list[str], line: str, crash: int) -> None:
    error = refusal(parse_vsnd, items)
    assert (error.report, error.crash) == ((line,), crash)


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (P9(tag="a", auto_delete=True), {"tag": "a", "auto_delete": True}),
        (Vtpm("x", devid=0), {"backend_domname": "x", "devid": 0}),
        (
            Vdispl(devid=1, connectors=(Connector("a", 5, 6), Connector())),
            {"devid": 1, "connectors": [{"unique_id": "a", "width": 5, "height": 6}, {}]},
        ),
        (Vfb(devid=0), {"devid": 0, "vnc": {}, "sdl": {}}),
        (
            Vfb(vnc=Vnc(enable=True, findunused=False), keymap="k"),
            {"vnc": {"enable": "True", "findunused": "False"}, "sdl": {}, "keymap": "k"},
        ),
        (Vkb(devid=0), {"devid": 0}),
        (Usbctrl("auto", 0, 2), {"devid": 0, "version": 2}),
        (Channel(name="n", pty=ChannelPty()), {"name": "n", "connection.pty": {}}),
        (Channel(socket=ChannelSocket("/x")), {"connection.socket": {"path": "/x"}}),
        (Usbdev(0, -1), {"ctrl": 0, "port": -1}),
        (Usbdev(hostdev=Hostdev(hostaddr=7)), {"type.hostdev": {"hostaddr": 7}}),
        (Virtio(grant_usage=False), {"grant_usage": "False"}),
        (
            Vsnd(pcms=(VsndPcm(streams=(VsndStream(type="c"),)),)),
            {"params": {}, "pcms": [{"params": {}, "streams": [{"type": "c", "params": {}}]}]},
        ),
    ],
)
def test_json(record: Any, shown: dict[str, Any]) -> None:
    assert as_json(record) == shown


WORDS = (
    *("backend", "name", "path", "type", "uuid", "vnc", "sdl", "width", "ports", "controller"),
    *("connectors", "connection", "sample-rates", "virtio", "pty", "card", "stream"),
)
PIECES = st.sampled_from(
    [
        *WORDS,
        "sample-rates",
        "virtio",
        "pty",
        "a:1x1",
        UUID,
        *"=,;: \t\n",
        "-",
        "{}",
        "%s",
        "\udcff",
    ]
)
SOUP = st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join)


@sliced(300)
@given(SOUP)
def test_any_text_is_read_or_refused(text: str) -> None:
    signals = set()
    for parse, entry in [
        (parse_vsnd, [text, "card," + text]),
        *((p, text) for p in PARSERS.values()),
    ]:
        try:
            as_json(parse(entry))
        except SpecError as error:
            signals.add(error.crash)
    assert signals <= {0, 6, 11}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("p9", "tag=a," * 200_000),
        ("p9", "max-files=" + "0" * 1_000_000 + "1"),
        ("p9", "tag=" + " " * 1_000_000 + "x"),
        ("vdispl", "connectors=" + "a:1x1;" * 60_000),
        ("vdispl", "connectors=a:" + " " * 1_000_000 + "1x" + "9" * 1_000_000),
        ("vkb", "backend-type=qemu," + "width=1," * 150_000),
        ("channel", "connection=pty" + ",a=b" * 200_000),
        ("virtio", "type=virtio,x," * 100_000),
        ("vfb", "vnc=1," * 100_000),
    ],
)
def test_work_is_linear_in_the_text(kind: str, text: str) -> None:
    begin = time.process_time()
    PARSERS[kind](text)
    assert time.process_time() - begin < 5


def test_vsnd_work_is_linear_in_the_items() -> None:
    begin = time.process_time()
    card = parse_vsnd(["pcm", "stream,type=p"] * 20_000)
    assert (len(card.pcms), len(card.pcms[-1].streams)) == (20_000, 1)
    assert time.process_time() - begin < 5
