# SPDX-License-Identifier: BSD-2-Clause
"""What the entry point `vsmmu` of the group `pytest11` names.

It asks for the plugin by its module's name, so `-p vsmmu.testing.plugin` and a `pytest_plugins`
that says the same load it once, whether or not the entry point is installed. `-p no:vsmmu` keeps it
out.
"""

from __future__ import annotations

pytest_plugins = ["vsmmu.testing.plugin"]
