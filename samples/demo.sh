#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# The main job, from a board's tree and guest configs to emulated DMA. Run by `make demo`.
set -e
samples=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

show vsmmu inspect "$samples/board.dtb"
show vsmmu guest-dtb --host "$samples/board.dtb" "$samples/crypto.cfg" \
    -o "$work/guest.dtb" --bindings "$work/bindings.json"
printf '\n$ cat bindings.json    # the map: vMasterID -> (physical SMMU, pMasterID)\n'
python3 - "$work/bindings.json" <<'PY'
import json, sys
for entry in json.load(open(sys.argv[1]))["bindings"]:
    print(json.dumps({k: entry[k] for k in ("vmaster_id", "smmu", "pmaster_id", "devices")}))
PY
if command -v dtc >/dev/null; then
    printf '\n$ dtc -I dtb -O dts guest.dtb    # from the vSMMU on\n'
    dtc -q -I dtb -O dts "$work/guest.dtb" | sed -n '/iommu@4040000/,$p'
fi
show vsmmu dom0-dtb "$samples/board.dtb" -o "$work/dom0.dtb"
for scenario in one-guest two-guests hostile; do
    show vsmmu run "$samples/$scenario.toml" 2>/dev/null
done
