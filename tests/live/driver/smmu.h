/* SPDX-License-Identifier: BSD-2-Clause */
/* A driver of one SMMUv3, written from IHI 0070. */
#ifndef SMMU_H
#define SMMU_H

#include "board.h"

#define EVENTS_KEPT 64

enum { C_BAD_STREAMID = 0x02, F_TRANSLATION = 0x10, F_PERMISSION = 0x13 };

struct event {
    u8 type;
    bool read;
    u32 sid;
    u64 address;
};

struct smmu {
    u64 base;
    u32 idr0, idr1, idr3, idr5;
    u32 sid_bits, cmdq_log2, eventq_log2;
    bool two_level;
    u64 *strtab, *cmdq, *eventq;
    u32 prod, cons, event_cons;
    volatile u32 lock;
    volatile u32 taken, gerrors;
    volatile struct event events[EVENTS_KEPT];
};

/* An address space: stage 1 tables of 4 KiB pages, 48 bits, and the CD that names them. */
struct space {
    u64 *root, *cd;
    u32 asid;
};

void smmu_boot(struct smmu *s, u64 base);
void smmu_stop(struct smmu *s);
void smmu_interrupt(struct smmu *s);

void space_make(struct smmu *s, struct space *space, u32 asid);
void space_map(struct space *space, u64 iova, u64 address, bool writable);
/* Clears the entry and makes the SMMU forget it. */
void space_unmap(struct smmu *s, struct space *space, u64 iova);

/* Whether the stream table has an STE; without one, DMA is an event (7.3.3). */
bool smmu_has_ste(struct smmu *s, u32 sid);
void smmu_attach(struct smmu *s, u32 sid, struct space *space);
void smmu_detach(struct smmu *s, u32 sid, struct space *space);

#endif
