# SPDX-License-Identifier: BSD-2-Clause
"""Recordings of what a driver did to an SMMU and what its devices got: reading, writing, replay."""
