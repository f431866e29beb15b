# SPDX-License-Identifier: BSD-2-Clause
"""Guest-side actors: what runs inside a domain and reaches its vSMMU by MMIO and memory alone."""
