# SPDX-License-Identifier: BSD-2-Clause
"""What the fuzzer's machines have and what their policies allow; all of it follows from a seed."""

from __future__ import annotations

from random import Random

from vsmmu.arch.registers import StallModel
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.features import Features

SWITCHES = ("substreams", "httu", "msi", "stalls", "ats", "pri")


def drawn(random: Random, *, full: bool) -> tuple[Features, Policy]:
    """Features of the SMMUs and the policy.

    Bare in one of three machines, everything in one of eight and where `full` says so, else any
    mixture.
    """
    kind = random.random()
    full, bare = full or kind > 7 / 8, not full and kind < 1 / 3
    often = 2 if full else 0 if bare else 0.7
    switches = {name: random.random() < often for name in SWITCHES}
    policy = Policy(
        commands_per_flush=random.choice([4, 64, 64]),
        commands_per_turn=random.choice([3, 16, 64]),
        pending_events=random.choice([2, 64]),
        device_events=random.choice([16, 128]),
        refusals_kept=random.choice([3, 32]),
        physical_queue_log2=random.choice([2, 5, 8, 8]),
        stage2_pages_per_step=random.choice([1, 4, 512]),
        s2_ipa_per_flush=random.choice([1, 32]),
        p2m_tables=random.choice([1, 256]),
        hypercalls=random.choice([2, 128]),
        grants=random.choice([3, 1024]),
        grant_mappings=random.choice([3, 1024]),
        stalls_per_vsmmu=random.choice([1, 2, 16]),
        pending_page_requests=random.choice([1, 64]),
        **switches,
    )
    return _features(random, 2 if full else 0.3 if bare else 0.8, bare=bare), policy


def _features(random: Random, often: float, *, bare: bool) -> Features:
    """An SMMU may have what the policy does not allow, and the other way round."""
    aidr = random.choice([0, 1, 2])
    features = Features.default(sidsize=24, oas=48, aidr=aidr)
    if random.random() < often:
        features = features.replace(ssidsize=8, cd2l=1)
    if random.random() < often:
        model = StallModel.STALL_AND_TERMINATE
        features = features.replace(
            stall_model=model, stall_max=random.choice([3, 4, 8]), term_model=random.getrandbits(1)
        )
    if bare:
        return features
    if random.random() < often:
        features = features.replace(httu=2)
    if random.random() < often:
        features = features.replace(msi=1)
    if random.random() < often:
        features = features.replace(ats=1)
        if random.random() < often:
            pps = random.getrandbits(1) if features.idr1.ssidsize else 0
            features = features.replace(pri=1, priqs=8, pps=pps)
    if aidr < 2:
        features = features.replace(ril=random.getrandbits(1), bbml=random.randrange(3))
    return features
