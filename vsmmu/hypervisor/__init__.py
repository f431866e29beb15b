# SPDX-License-Identifier: BSD-2-Clause
"""The hypervisor's side: domains, stage 2, trapped vSMMUs, shadowing onto physical SMMUs."""
