# SPDX-License-Identifier: BSD-2-Clause
"""The guest tree that the libxl of one Xen version builds, byte for byte, oddities included.

`dt_tools.guest` builds what is right; this package what `xl create` of that version would, so that
the two can be compared. Where libxl's tree would be broken or libxl would crash, it refuses.
"""

from dt_tools.libxl.guest import LibxlGuest, build_libxl
from dt_tools.libxl.versions import VERSIONS, Version

__all__ = ["VERSIONS", "LibxlGuest", "Version", "build_libxl"]
