# SPDX-License-Identifier: BSD-2-Clause
"""A real QEMU `virt` machine with an SMMUv3, driven from outside.

Registers and memory are reached through the qtest socket, a reset through QMP. `edu` PCI devices
do the DMA: four of them, StreamIDs 8, 16 and 24 on bus 0, and one behind a root port whose bus
number is programmable. The processor sits in WFI, and with `-icount sleep=off` a device's timer
fires as soon as nothing else happens.

A distribution's QEMU may lack the qtest accelerator; the socket works under TCG as well.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

BINARY = "qemu-system-aarch64"
RAM, RAM_SIZE = 0x4000_0000, 0x200_0000
# Bytes of an edu used; old versions stop the machine at the very last one.
BUFFER = 4032

_SMMU = 0x0905_0000
_ECAM = 0x40_1000_0000
_BARS = 0x1000_0000
_BAR_SIZE = 0x10_0000
_ROOT_PORT = 4
_DEVICES = (1, 2, 3)
_WFI_LOOP = 0x17FF_FFFF_D503_207F
_CODE = 0x4020_0000
# QEMU's own device tree and the processor's loop lie below.
CLEAR_FROM = RAM + 0x40_0000
_SPI = {74: "eventq", 76: "cmdq-sync", 77: "gerror"}
_START_SECONDS = 20.0
# What an edu sees of its own buffer, and its registers.
_EDU_BUFFER, _SRC, _DST, _COUNT, _COMMAND = 0x4_0000, 0x80, 0x88, 0x90, 0x98
_RUN, _TO_RAM = 1, 2


class QemuDied(Exception):
    """The process is gone; the message holds the end of what it said."""


def version(binary: str) -> tuple[int, ...]:
    """(major, minor, micro) of a QEMU program."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", said)
    assert found, said
    return tuple(map(int, found.groups()))


def find() -> str | None:
    """The QEMU to use; None when there is none."""
    return shutil.which(BINARY)


class Qemu:
    """One running machine. `reset` makes it new, `close` ends it.

    Args:
        binary: the program.
        devices: more of them, for `-device`.
    """

    def __init__(self, binary: str, devices: Sequence[str] = ()) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="vsmmu-qemu-")
        place = Path(self._place.name)
        self._log = (place / "log").open("w+")
        self._process = subprocess.Popen(
            [binary, *_arguments(place, devices)],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        try:
            self._qtest = self._connect(place / "qtest")
            self._qmp = self._connect(place / "qmp")
            self._lines = self._qtest.makefile("rb")
            self._answers = self._qmp.makefile("rb")
            self._waiting: list[bytes] = []
            self._pulses: list[str] = []
            json.loads(self._answers.readline())
            self.qmp("qmp_capabilities")
            self._ask(f"irq_intercept_in {self._find('arm_gic')}")
        except BaseException:
            self.close()
            raise
        self.bus = 0

    # The process.

    def _connect(self, path: Path) -> socket.socket:
        end = time.monotonic() + _START_SECONDS
        while True:
            link = socket.socket(socket.AF_UNIX)
            try:
                link.connect(str(path))
            except OSError:
                link.close()
                if self._process.poll() is not None or time.monotonic() > end:
                    raise QemuDied(self._said()) from None
                time.sleep(0.005)
            else:
                link.settimeout(30)
                return link

    def _said(self) -> str:
        self._log.flush()
        self._log.seek(0)
        return self._log.read()[-600:]

    def close(self) -> None:
        """End the process and remove its files."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for link in ("_lines", "_answers", "_qtest", "_qmp", "_log"):
            if hasattr(self, link):
                getattr(self, link).close()
        self._place.cleanup()

    def qmp(self, name: str, event: str = "", **arguments: Any) -> Any:
        """Run a QMP command; wait for `event` too when given."""
        message = {"execute": name, "arguments": arguments}
        self._qmp.sendall(json.dumps(message).encode())
        result = None
        answered = False
        while not answered or event:
            line = self._answers.readline()
            if not line:
                raise QemuDied(self._said())
            answer = json.loads(line)
            assert "error" not in answer, answer
            if "return" in answer:
                answered, result = True, answer["return"]
            elif answer.get("event") == event:
                event = ""
        return result

    def _find(self, kind: str) -> str:
        for child in self.qmp("qom-list", path="/machine/unattached"):
            if re.search(rf"child<.*{kind}.*>", child["type"]):
                return f"/machine/unattached/{child['name']}"
        raise AssertionError(f"no {kind} in the machine")

    # qtest: writes are collected and sent with the next question.

    def _post(self, line: str) -> None:
        self._waiting.append(line.encode())
        if len(self._waiting) >= 200:
            self._flush()

    def _flush(self) -> list[bytes]:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        try:
            self._qtest.sendall(b"\n".join(waiting) + b"\n")
            return [self._answer(sent) for sent in waiting]
        except ConnectionError:
            raise QemuDied(self._said()) from None

    def _answer(self, sent: bytes) -> bytes:
        while True:
            line = self._lines.readline()
            if not line:
                raise QemuDied(self._said())
            if line.startswith(b"IRQ raise"):
                self._pulses.append(_SPI.get(int(line.split()[2]), ""))
            elif line.startswith(b"OK"):
                return line[3:].strip()
            elif not line.startswith(b"IRQ"):
                raise AssertionError((sent[:80], line))

    def _ask(self, line: str) -> bytes:
        return self._ask_all([line])[0]

    def _ask_all(self, lines: list[str]) -> list[bytes]:
        self._waiting += [line.encode() for line in lines]
        return self._flush()[-len(lines) :]

    # What a program does.

    def reset(self, bus: int, dirty: list[int]) -> None:
        """Reset, clear the 4 KiB frames that were written, give the devices their addresses."""
        self.qmp("system_reset", event="RESET")
        for first, count in _runs(dirty):
            self._post(f"memset {first << 12:#x} {count << 12:#x} 0")
        for i, slot in enumerate(_DEVICES):
            self._set_up(slot << 15, i)
        port = _ROOT_PORT << 15
        self.bus = bus
        self._post(f"writel {_ECAM + port + 0x18:#x} {bus << 16 | bus << 8:#x}")
        window = _BARS + _BAR_SIZE * len(_DEVICES)
        self._post(f"writel {_ECAM + port + 0x20:#x} {window | window >> 16:#x}")
        self._post(f"writew {_ECAM + port + 4:#x} 6")
        self._set_up(bus << 20, len(_DEVICES))
        self.irqs()

    def _set_up(self, place: int, index: int) -> int:
        bar = _BARS + index * _BAR_SIZE
        self._post(f"writel {_ECAM + place + 0x10:#x} {bar:#x}")
        self._post(f"writew {_ECAM + place + 4:#x} 6")
        return bar

    def device(self, slot: int) -> int:
        """Make a device on bus 0 answer, and say where: the address of its first BAR."""
        return self._set_up(slot << 15, len(_DEVICES) + 1 + slot)

    def run(self, lines: list[str]) -> float:
        """Processor time that QEMU spends on these qtest commands, in seconds."""
        self._flush()
        start = self.cpu_seconds()
        for line in lines:
            self._post(line)
        self._flush()
        return self.cpu_seconds() - start

    def cpu_seconds(self) -> float:
        """Processor time of all threads of QEMU so far."""
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def irqs(self) -> list[str]:
        """Interrupt lines that were raised since the last call, in order."""
        if self._waiting:
            self._flush()
        pulses, self._pulses = self._pulses, []
        return [line for line in pulses if line]

    def write(self, address: int, data: bytes) -> None:
        for at in range(0, len(data), 4096):
            part = data[at : at + 4096]
            text = base64.b64encode(part).decode()
            self._post(f"b64write {address + at:#x} {len(part)} {text}")

    def read(self, address: int, size: int) -> bytes:
        return base64.b64decode(self._ask(f"b64read {address:#x} {size}"))

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        self._post(f"write{'l' if size == 4 else 'q'} {_SMMU + offset:#x} {value:#x}")

    def mmio_read(self, offset: int, size: int) -> int:
        return self.mmio_reads([(offset, size)])[0]

    def mmio_reads(self, places: list[tuple[int, int]]) -> list[int]:
        """Several registers, each (offset, size), in order."""
        asked = [f"read{'l' if size == 4 else 'q'} {_SMMU + at:#x}" for at, size in places]
        return [int(answer, 16) for answer in self._ask_all(asked)]

    def dma(self, device: int, iova: int, slot: int, size: int, *, write: bool) -> None:
        """Move `size` bytes between an edu's buffer at `slot` and `iova`."""
        bar = _BARS + device * _BAR_SIZE
        inner = _EDU_BUFFER + slot
        source, destination = (inner, iova) if write else (iova, inner)
        self._post(f"writeq {bar + _SRC:#x} {source:#x}")
        self._post(f"writeq {bar + _DST:#x} {destination:#x}")
        self._post(f"writeq {bar + _COUNT:#x} {size:#x}")
        self._post(f"writeq {bar + _COMMAND:#x} {_RUN | (_TO_RAM if write else 0):#x}")
        end = time.monotonic() + 10
        while int(self._ask(f"readq {bar + _COMMAND:#x}"), 16) & _RUN:
            # The timer fires once the main loop has had its turn.
            assert time.monotonic() < end, "an edu does not finish"


def _runs(frames: list[int]) -> list[tuple[int, int]]:
    """(first, count) of neighbouring numbers."""
    runs: list[list[int]] = []
    for frame in sorted(frames):
        if runs and frame == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([frame, 1])
    return [(first, count) for first, count in runs]


def _arguments(place: Path, more: Sequence[str]) -> list[str]:
    edu = "edu,dma_mask=0xffffffffffffffff"
    devices = [f"{edu},addr={slot:#x}" for slot in _DEVICES]
    devices += [f"pcie-root-port,id=below,chassis=1,addr={_ROOT_PORT:#x}", f"{edu},bus=below"]
    devices += [f"loader,addr={_CODE:#x},data={_WFI_LOOP:#x},data-len=8"]
    devices += [f"loader,addr={_CODE:#x},cpu-num=0", *more]
    return [
        "-M", "virt,iommu=smmuv3,gic-version=2", "-accel", "tcg", "-icount", "shift=0,sleep=off",
        "-cpu", "cortex-a53", "-m", f"{RAM_SIZE >> 20}", "-nodefaults", "-no-user-config",
        "-display", "none", "-nic", "none",
        "-qtest", f"unix:{place / 'qtest'},server=on,wait=off", "-qtest-log", "none",
        "-qmp", f"unix:{place / 'qmp'},server=on,wait=off",
        *(word for device in devices for word in ("-device", device)),
    ]  # fmt: skip


def stream_ids(bus: int) -> tuple[int, ...]:
    """The StreamIDs of the four devices."""
    return (*(slot << 3 for slot in _DEVICES), bus << 8)
