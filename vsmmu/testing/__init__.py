# SPDX-License-Identifier: BSD-2-Clause
"""What tests of other projects use of this one."""
