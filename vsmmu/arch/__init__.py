# SPDX-License-Identifier: BSD-2-Clause
"""What IHI 0070 fixes: layouts of registers, STEs, CDs, commands, events, descriptors.

No other package of this project knows a bit number.
"""
