# SPDX-License-Identifier: BSD-2-Clause
"""Records what xl makes of random configurations: `VSMMU_XL=... python record_xl.py COUNT`."""

from __future__ import annotations

import json
import lzma
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "xl_configs"), str(HERE.parent.parent)]

from pools import configuration  # noqa: E402
from xl_oracle import outcome  # noqa: E402


def row(text: str) -> str:
    """A line of the file; empty when xl does not do the same thing twice."""
    first, second = outcome(text), outcome(text)
    for found in (first, second):
        if found["config"]:
            uuid = found["config"]["c_info"].get("uuid", "")
            if uuid and uuid not in text.lower():
                found["config"]["c_info"]["uuid"] = "<generated>"
            hvm = found["config"]["b_info"].get("type.hvm", {})
            if "ms_vm_genid" in hvm:
                hvm["ms_vm_genid"] = "<generated>"
    return json.dumps({"text": text, **first}, sort_keys=True) if first == second else ""


def main() -> None:
    """Writes the file beside this one."""
    rnd = random.Random(20)
    texts = list(dict.fromkeys(configuration(rnd) for _ in range(int(sys.argv[1]))))
    with ThreadPoolExecutor(2) as pool:
        rows = [line for line in pool.map(row, texts) if line]
    data = lzma.compress(("\n".join(rows) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    (HERE / "xl" / "recorded.jsonl.xz").write_bytes(data)
    print(len(rows), "of", len(texts), "recorded,", len(data), "bytes")


if __name__ == "__main__":
    main()
