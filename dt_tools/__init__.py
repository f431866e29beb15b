# SPDX-License-Identifier: BSD-2-Clause
"""Device trees: reading host boards, and building the trees of the guests that share them.

`blob` turns bytes into a `tree.Tree` and back, `platform` says what a host tree means, and
`report` shows it. Nothing here imports the emulator.
"""
