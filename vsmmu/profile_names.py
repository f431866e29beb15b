# SPDX-License-Identifier: BSD-2-Clause
"""The profiles of the emulator by the names that a user types."""

from __future__ import annotations

from dt_tools.profiles import PROFILES, Profile
from vsmmu.hypervisor.settings import SettingError, brief


def profile_from(name: object) -> Profile:
    """The profile called `name`, for `build_machine`. Raises SettingError."""
    found = PROFILES.get(name) if isinstance(name, str) else None
    if found is None:
        raise SettingError(f"profile: expected {' or '.join(PROFILES)}, not {brief(name)}")
    return found
