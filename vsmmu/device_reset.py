# SPDX-License-Identifier: BSD-2-Clause
"""A device's reset, which the toolstack asks for, and the end of its quarantine."""

from __future__ import annotations

from vsmmu.toolstack import Guest, Machine


def reset_device(machine: Machine, guest: Guest, device: str) -> None:
    """Reset a device that a guest has or had; what of it is in quarantine is free again.

    Raises:
        HypercallError: it does not answer an invalidation still.
    """
    for port in guest.ports[device]:
        port.reset()
    for port in guest.ports[device]:
        if (port.smmu.name, port.sid) in machine.hypervisor.quarantined:
            machine.hypervisor.release(port.smmu.name, port.sid)
