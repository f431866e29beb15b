# SPDX-License-Identifier: BSD-2-Clause
"""Reports on a host board: SMMUs, StreamIDs, and which devices can be assigned."""
