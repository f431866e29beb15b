# SPDX-License-Identifier: BSD-2-Clause
"""For testing software against the emulator from outside (docs/testing.md, docs/live.md).

Builders (`space`, `tables`, `streams`, `rings`), machines (`bare`, `machine`), hypothesis
strategies (`strategies`), a pytest plugin (`plugin`), and machine code on the emulated machine
(`live`). Nothing of the emulator imports these, and nothing here is imported before it is asked
for: pytest and hypothesis come with the extra `vsmmu[testing]`, unicorn with `vsmmu[live]`.
"""
