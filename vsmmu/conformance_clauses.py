# SPDX-License-Identifier: BSD-2-Clause
"""The clauses of IHI 0070 issue G.b that docs/conformance.md lists; see `vsmmu.conformance`."""

from __future__ import annotations

# What no SMMU of this project has: (feature, where software sees that it is absent).
OUT_OF_SCOPE = (
    ("Secure state", "SMMU_S_* registers read 0 and ignore writes; SSec=1 is CERROR_ILL"),
    ("Realm state, granule protection", "IDR0.RME_IMPL=0"),
    ("Device Permission Table", "IDR3.DPT=0; CMD_DPTI_* is CERROR_ILL, EATS=3 acts as 0"),
    ("Enhanced command queues", "IDR1.ECMDQ=0, IDR6=0"),
    ("VATOS", "IDR0.VATOS=0"),
    ("MPAM", "IDR3.MPAM=0; CMD_CFGI_VMS_PIDM is CERROR_ILL"),
    ("Performance monitors (PMCG)", "no PMCG page"),
    ("AArch32 tables", "IDR0.TTF[0]=0; AA64=0 and S2AA64=0 are ILLEGAL"),
    ("SMMUv3.4: 128-bit descriptors, permission indirection and overlays, THE, AIE, HAFT",
     "AIDR.ArchMinorRev<=3; IDR5.D128, IDR3.{S1PI,S2PI,S2PO,THE,AIE}=0"),
    ("Preset tables and queues", "IDR1.{TABLES_PRESET,QUEUES_PRESET,REL}=0"),
)  # fmt: skip

# Columns: number | title | identification fields it depends on, or ! for out of scope | what is
# missing | modules that carry it out without naming it.
CLAUSES = """
3.2 | Stream numbering | | | smmu/strtab
3.3.1 | Stream table lookup | | | smmu/config, smmu/strtab
3.3.2 | From StreamID to context descriptor
3.3.3 | Configuration and translation lookup
3.3.4 | Transaction attributes | | privilege and instruction; no memory attributes | smmu/translate
3.4 | Address sizes
3.4.1 | Input address size
3.4.3 | Addresses of the SMMU's own accesses
3.5.1 | Circular queues
3.5.2 | Command queue | | | smmu/cmdq
3.5.3 | Event queue | | | smmu/eventq
3.5.5 | Merging of events
3.5.6 | Enhanced command queues | !
3.9.1 | ATS | ats
3.9.2 | Changing the ATS configuration | ats
3.10.2 | Secure state | !
3.10.3 | Realm state | !
3.11 | Reset, enable and initialization | | what is UNKNOWN at reset is 0 | smmu/regfile, smmu/smmu
3.12.1 | Terminate model | | | smmu/translate
3.12.2 | Stall model | stall_max
3.13.2 | Hardware update of the Access flag | httu
3.13.3 | Hardware update of dirty state | httu
3.13.5 | Flag updates with two stages | httu
3.13.6 | Access flag in table descriptors | !
3.13.7 | ATS, PRI and flag updates | ats, httu
3.16 | Embedded implementations | !
3.17 | TLB tagging, VMIDs, ASIDs
3.17.1 | Global entries
3.17.2 | Broadcast TLB maintenance | btm
3.17.5 | EL2 ASIDs in E2H mode | hyp
3.17.6 | VMID wildcards | vmw
3.18 | Interrupts | | | smmu/smmu
3.18.1 | MSI synchronization | msi
3.19.1 | Dormant state | dormhint
3.20.1 | TLB conflict | | caches here never conflict
3.20.2 | Configuration cache conflict | | caches here never conflict
3.21.1 | Tables and completion of TLB invalidation | | | smmu/commands, smmu/tlb
3.21.3 | Configuration structures and completion of their invalidation
3.22 | Destructive reads, directed cache prefetch | | STE.DRE and DCP are ignored
3.23 | Memory tagging | !
3.24 | Device Permission Table | !
3.25 | Granule protection checks | !
3.26 | Permission indirection | !
3.27 | Translation hardening | !
4.1.1 | Opcodes | | | smmu/commands
4.1.3 | Command errors | | | smmu/cmdq
4.1.4 | Consumption of commands | | | smmu/cmdq
4.1.6 | Common fields
4.1.7 | Parameters out of range | | | smmu/commands
4.2.1 | CMD_PREFETCH_CONFIG
4.2.2 | CMD_PREFETCH_ADDR
4.3.1 | CMD_CFGI_STE
4.3.2 | CMD_CFGI_STE_RANGE
4.3.3 | CMD_CFGI_CD
4.3.4 | CMD_CFGI_CD_ALL
4.3.5 | CMD_CFGI_VMS_PIDM | !
4.3.6 | CMD_CFGI_ALL | | | smmu/commands
4.4.1 | Fields of TLB invalidation, ranges | ril
4.4.2 | TLB invalidation of stage 1
4.4.3 | TLB invalidation of stage 2
4.4.4 | CMD_TLBI_NSNH_ALL
4.5.1 | CMD_ATC_INV | ats
4.5.2 | CMD_PRI_RESP | pri
4.6 | DPT maintenance | !
4.7.1 | CMD_RESUME | stall_max
4.7.2 | CMD_STALL_TERM | stall_max
4.7.3 | CMD_SYNC
4.8 | Consumption summary
5.1 | Level 1 stream table descriptor
5.2 | Stream table entry | | memory attributes, DRE and DCP have no effect
5.2.2 | Validity of an STE
5.3 | Level 1 context descriptor | ssidsize, cd2l
5.4 | Context descriptor | | memory attributes have no effect
5.4.1 | Notes on CDs, EPDx | | | smmu/cd
5.4.2 | Validity of a CD
5.5 | Fault configuration: A, R, S
5.6 | Virtual Machine Structure | !
6.2 | Register access
6.3.1 | IDR0
6.3.2 | IDR1
6.3.3 | IDR2
6.3.4 | IDR3
6.3.5 | IDR4
6.3.6 | IDR5
6.3.7 | IIDR
6.3.8 | AIDR
6.3.9 | CR0
6.3.10 | CR0ACK
6.3.11 | CR1 | | stored and guarded; memory attributes have no effect
6.3.12 | CR2
6.3.13 | STATUSR | dormhint
6.3.14 | GBPA | | ABORT acts; memory attributes have no effect
6.3.15 | AGBPA | !
6.3.16 | IRQ_CTRL
6.3.17 | S2PII | !
6.3.18 | IRQ_CTRLACK
6.3.19 | GERROR
6.3.20 | GERRORN
6.3.21 | GERROR_IRQ_CFG0 | msi
6.3.22 | GERROR_IRQ_CFG1 | msi
6.3.23 | GERROR_IRQ_CFG2 | msi
6.3.24 | STRTAB_BASE
6.3.25 | STRTAB_BASE_CFG
6.3.26 | CMDQ_BASE
6.3.27 | CMDQ_PROD
6.3.28 | CMDQ_CONS
6.3.29 | EVENTQ_BASE
6.3.30 | EVENTQ_IRQ_CFG0 | msi
6.3.31 | EVENTQ_IRQ_CFG1 | msi
6.3.32 | EVENTQ_IRQ_CFG2 | msi
6.3.33 | PRIQ_BASE | pri
6.3.34 | PRIQ_IRQ_CFG0 | pri, msi
6.3.35 | PRIQ_IRQ_CFG1 | pri, msi
6.3.36 | PRIQ_IRQ_CFG2 | pri
6.3.37 | GATOS_CTRL | atos
6.3.38 | GATOS_SID | atos
6.3.39 | GATOS_ADDR | atos
6.3.40 | GATOS_PAR | atos
6.3.41 | MPAMIDR, GMPAM, GBPMPAM (to §6.3.43) | !
6.3.44 | VATOS_SEL | !
6.3.45 | IDR6 | !
6.3.46 | DPT_* (to §6.3.48) | !
6.3.49 | Command queue control pages (to §6.3.51) | !
6.3.95 | EVENTQ_PROD
6.3.96 | EVENTQ_CONS
6.3.97 | PRIQ_PROD | pri
6.3.98 | PRIQ_CONS | pri
6.3.170 | Identification registers | | CIDRn alone | smmu/regfile
7.1 | Command queue errors
7.2 | Recording of faults and events
7.2.2 | Event queue access abort | | | smmu/eventq
7.3 | Event records
7.3.1 | Merging of records
7.3.2 | F_UUT | | no such transaction
7.3.3 | C_BAD_STREAMID
7.3.4 | F_STE_FETCH
7.3.5 | C_BAD_STE
7.3.6 | F_BAD_ATS_TREQ | ats
7.3.7 | F_STREAM_DISABLED | ssidsize
7.3.8 | F_TRANSL_FORBIDDEN | ats
7.3.9 | C_BAD_SUBSTREAMID
7.3.10 | F_CD_FETCH
7.3.11 | C_BAD_CD
7.3.12 | F_WALK_EABT
7.3.13 | F_TRANSLATION
7.3.14 | F_ADDR_SIZE
7.3.15 | F_ACCESS
7.3.16 | F_PERMISSION
7.3.17 | F_TLB_CONFLICT | | never raised
7.3.18 | F_CFG_CONFLICT | | never raised
7.3.19 | E_PAGE_REQUEST | | a hint that is never given
7.3.20 | F_VMS_FETCH | !
7.3.22 | Priorities of records | | | smmu/translate, smmu/walk
7.4 | Event queue overflow
7.5 | Global errors | | | smmu/regfile, smmu/smmu
7.5.1 | GERROR interrupt | | | smmu/smmu
8 | Page request queue | pri
8.1 | PRI queue overflow | pri
8.3 | PRG Response codes | pri
9 | Address translation operations | atos
10 | Performance monitors | !
13 | Attribute transformation | | no memory attributes
13.6 | Attributes of PCIe and ATS | ats | no memory attributes
17 | MPAM | !
18 | Memory encryption contexts | !
"""
