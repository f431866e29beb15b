# SPDX-License-Identifier: BSD-2-Clause
"""What the fuzzer's machines have and what their policies allow; all of it follows from a seed."""

from __future__ import annotations

from random import Random

from vsmmu.arch.registers import StallModel
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.features import Features

SWITCHES = ("substreams", "httu", "msi", "stalls", "ats", "pri")


def drawn(random: Random) -> tuple[Features, Policy]:
    """Features of the SMMUs and the policy: bare in one of three machines, else any mixture."""
    bare = random.random() < 1 / 3
    switches = dict.fromkeys(SWITCHES, False)
    if not bare:
        switches = {name: random.random() < 0.7 for name in SWITCHES}
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
    return _features(random, bare=bare), policy


def _features(random: Random, *, bare: bool) -> Features:
    """An SMMU may have what the policy does not allow, and the other way round."""
    aidr = random.choice([0, 1, 2])
    features = Features.default(sidsize=24, oas=48, aidr=aidr)
    if random.random() < (0.3 if bare else 0.8):
        features = features.replace(ssidsize=8, cd2l=1)
    if random.random() < (0.3 if bare else 0.8):
        model = StallModel.STALL_AND_TERMINATE
        features = features.replace(
            stall_model=model, stall_max=random.choice([3, 4, 8]), term_model=random.getrandbits(1)
        )
    if bare:
        return features
    if random.random() < 0.8:
        features = features.replace(httu=2)
    if random.random() < 0.8:
        features = features.replace(msi=1)
    if random.random() < 0.9:
        features = features.replace(ats=1)
        if random.random() < 0.8:
            pps = random.getrandbits(1) if features.idr1.ssidsize else 0
            features = features.replace(pri=1, priqs=8, pps=pps)
    if aidr < 2:
        features = features.replace(ril=random.getrandbits(1), bbml=random.randrange(3))
    return features
