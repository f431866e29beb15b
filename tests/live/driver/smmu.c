/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A driver of one SMMUv3, written from IHI 0070. Sections are of that document.
 *
 * For the tests, each of these leaves out something that a driver must do:
 *   MISTAKE_NO_TLBI   CMD_TLBI_NH_VA after an entry is cleared
 *   MISTAKE_NO_SYNC   the CMD_SYNC after it
 *   MISTAKE_NO_CFGI   CMD_CFGI_STE after an STE is written
 *   MISTAKE_NO_CONS   EVENTQ_CONS after a record is read
 * and MISTAKE_COMMAND sends what is no command in place of CMD_TLBI_NH_VA.
 */
#include "smmu.h"

/* Registers (6.2); the event queue's indexes are in page 1. */
enum {
    IDR0 = 0x000, IDR1 = 0x004, IDR3 = 0x00c, IDR5 = 0x014, IIDR = 0x018,
    CR0 = 0x020, CR0ACK = 0x024, CR1 = 0x028, CR2 = 0x02c, GBPA = 0x044,
    IRQ_CTRL = 0x050, IRQ_CTRLACK = 0x054, GERROR = 0x060, GERRORN = 0x064,
    GERROR_IRQ_CFG0 = 0x068, STRTAB_BASE = 0x080, STRTAB_BASE_CFG = 0x088,
    CMDQ_BASE = 0x090, CMDQ_PROD = 0x098, CMDQ_CONS = 0x09c,
    EVENTQ_BASE = 0x0a0, EVENTQ_IRQ_CFG0 = 0x0b0,
    EVENTQ_PROD = 0x100a8, EVENTQ_CONS = 0x100ac,
};

/* CR0 (6.3.9), GBPA (6.3.14), IRQ_CTRL (6.3.16). */
enum { SMMUEN = 1 << 0, EVENTQEN = 1 << 2, CMDQEN = 1 << 3 };
#define GBPA_ABORT (1u << 20)
#define GBPA_UPDATE (1u << 31)
enum { GERROR_IRQEN = 1 << 0, EVENTQ_IRQEN = 1 << 2 };
/* Write-back, inner shareable, for tables and queues (6.3.11); RECINVSID and PTM (6.3.12). */
#define CR1_VALUE 0xd75
#define CR2_VALUE 0x6
#define RA (1ull << 62)

/* Commands (4.1.3). */
enum {
    CFGI_STE = 0x03, CFGI_STE_RANGE = 0x04, CFGI_CD = 0x05, TLBI_NH_ASID = 0x11,
    TLBI_NH_VA = 0x12, TLBI_NSNH_ALL = 0x30, SYNC = 0x46,
};
#define LEAF 1ull
#define RANGE_ALL 31ull
#define SYNC_SEV (2ull << 12)

/* STE (5.2): V, Config, S1ContextPtr; caching of the CD, SHCFG. */
#define STE_V 1ull
#define STE_ABORT (0ull << 1)
#define STE_S1 (5ull << 1)
#define STE_CD_CACHED (1ull << 2 | 1ull << 4 | 3ull << 6)
#define SPLIT 8

/* CD (5.4): 48 bits, 4 KiB, TTB0 only. */
#define CD_T0SZ 16ull
#define CD_WALKS (1ull << 8 | 1ull << 10 | 3ull << 12)
#define CD_EPD1 (1ull << 30)
#define CD_V (1ull << 31)
#define CD_AA64 (1ull << 41)
#define CD_R (1ull << 45)
#define CD_A (1ull << 46)
#define CD_ASET (1ull << 47)
#define MAIR_WB 0xff

/* Descriptors (VMSAv8-64): valid, table or page, AP, shareability, AF, nG. */
#define PTE_TABLE 3ull
#define PTE_PAGE (3ull | 1ull << 6 | 3ull << 8 | 1ull << 10 | 1ull << 11)
#define PTE_READONLY (1ull << 7)
#define ADDRESS 0x0000fffffffff000ull

#define POLLS 200000

static u32 get(struct smmu *s, u32 reg) { return read32(s->base + reg); }
static void set(struct smmu *s, u32 reg, u32 value) { write32(s->base + reg, value); }

static void set_acked(struct smmu *s, u32 reg, u32 ack, u32 value, const char *what)
{
    set(s, reg, value);
    for (u32 i = 0; i < POLLS; i++)
        if (get(s, ack) == value)
            return;
    die(what, value);
}

/* Commands. */

static u32 next(u32 index, u32 log2) { return (index + 1) & ((2u << log2) - 1); }

static bool full(struct smmu *s) { return (s->prod ^ s->cons) == 1u << s->cmdq_log2; }

static u32 consumed(struct smmu *s) { return get(s, CMDQ_CONS) & ((2u << s->cmdq_log2) - 1); }

static void push(struct smmu *s, u64 word0, u64 word1)
{
    for (u32 i = 0; full(s); i++) {
        if (i == POLLS)
            die("command queue stays full", s->prod);
        s->cons = consumed(s);
    }
    u64 *entry = s->cmdq + 2 * (s->prod & ((1u << s->cmdq_log2) - 1));
    entry[0] = word0;
    entry[1] = word1;
    s->prod = next(s->prod, s->cmdq_log2);
    dsb();
    set(s, CMDQ_PROD, s->prod);
}

static void wait(struct smmu *s)
{
    push(s, SYNC | SYNC_SEV, 0);
    for (u32 i = 0; i < POLLS; i++) {
        s->cons = consumed(s);
        if (s->cons == s->prod)
            return;
        if (s->gerrors)
            die("command queue stopped, GERROR", s->gerrors);
    }
    die("CMD_SYNC does not complete", s->prod);
}

static void issue(struct smmu *s, u64 word0, u64 word1)
{
    lock(&s->lock);
    push(s, word0, word1);
    wait(s);
    unlock(&s->lock);
}

/* Probe and reset, in the order of Linux. */

static void probe(struct smmu *s)
{
    s->idr0 = get(s, IDR0);
    s->idr1 = get(s, IDR1);
    s->idr3 = get(s, IDR3);
    s->idr5 = get(s, IDR5);
    get(s, IIDR);
    if (!(s->idr0 >> 1 & 1) || !(s->idr0 >> 2 & 2))
        die("no stage 1 with AArch64 tables, IDR0", s->idr0);
    if (!(s->idr5 >> 4 & 1))
        die("no 4 KiB granule, IDR5", s->idr5);
    s->sid_bits = s->idr1 & 0x3f;
    s->two_level = (s->idr0 >> 27 & 3) == 1 && s->sid_bits > SPLIT;
    s->cmdq_log2 = s->idr1 >> 21 & 0x1f;
    s->eventq_log2 = s->idr1 >> 16 & 0x1f;
    if (s->cmdq_log2 > 8)
        s->cmdq_log2 = 8;
    if (s->eventq_log2 > 7)
        s->eventq_log2 = 7;
}

static void make_stream_table(struct smmu *s)
{
    u32 size = s->two_level ? 8u << (s->sid_bits - SPLIT) : 64u << s->sid_bits;
    u32 format = s->two_level ? 1u << 16 | SPLIT << 6 : 0;

    s->strtab = pages(size, size);
    if (!s->two_level)
        for (u32 sid = 0; sid < 1u << s->sid_bits; sid++)
            s->strtab[8 * sid] = STE_V | STE_ABORT;
    write64(s->base + STRTAB_BASE, (u64)s->strtab | RA);
    set(s, STRTAB_BASE_CFG, s->sid_bits | format);
}

void smmu_boot(struct smmu *s, u64 base)
{
    s->base = base;
    probe(s);
    if (get(s, CR0) & SMMUEN)
        set(s, GBPA, (get(s, GBPA) & ~GBPA_UPDATE) | GBPA_ABORT | GBPA_UPDATE);
    set_acked(s, CR0, CR0ACK, 0, "CR0ACK after 0");
    set(s, CR1, CR1_VALUE);
    set(s, CR2, CR2_VALUE);
    make_stream_table(s);
    s->cmdq = pages(16ul << s->cmdq_log2, 16ul << s->cmdq_log2);
    write64(base + CMDQ_BASE, (u64)s->cmdq | RA | s->cmdq_log2);
    s->prod = s->cons = 0;
    set(s, CMDQ_PROD, 0);
    set(s, CMDQ_CONS, 0);
    set_acked(s, CR0, CR0ACK, CMDQEN, "CR0ACK after CMDQEN");
    issue(s, CFGI_STE_RANGE, RANGE_ALL);
    issue(s, TLBI_NSNH_ALL, 0);
    s->eventq = pages(32ul << s->eventq_log2, 32ul << s->eventq_log2);
    write64(base + EVENTQ_BASE, (u64)s->eventq | RA | s->eventq_log2);
    s->event_cons = 0;
    set(s, EVENTQ_PROD, 0);
    set(s, EVENTQ_CONS, 0);
    set_acked(s, CR0, CR0ACK, CMDQEN | EVENTQEN, "CR0ACK after EVENTQEN");
    set_acked(s, IRQ_CTRL, IRQ_CTRLACK, 0, "IRQ_CTRLACK after 0");
    write64(base + GERROR_IRQ_CFG0, 0);
    write64(base + EVENTQ_IRQ_CFG0, 0);
    set_acked(s, IRQ_CTRL, IRQ_CTRLACK, GERROR_IRQEN | EVENTQ_IRQEN, "IRQ_CTRLACK");
    set_acked(s, CR0, CR0ACK, CMDQEN | EVENTQEN | SMMUEN, "CR0ACK after SMMUEN");
}

void smmu_stop(struct smmu *s)
{
    set_acked(s, IRQ_CTRL, IRQ_CTRLACK, 0, "IRQ_CTRLACK after 0");
    set_acked(s, CR0, CR0ACK, 0, "CR0ACK after 0");
}

/* Streams: what the SMMU does not look at yet is written first, word 0 last (3.21.3). */

bool smmu_has_ste(struct smmu *s, u32 sid)
{
    return !s->two_level || s->strtab[sid >> SPLIT];
}

static u64 *ste_of(struct smmu *s, u32 sid)
{
    static volatile u32 making;

    if (sid >> s->sid_bits)
        die("StreamID out of range", sid);
    if (!s->two_level)
        return s->strtab + 8 * sid;
    u64 *l1std = s->strtab + (sid >> SPLIT);
    lock(&making);
    if (!smmu_has_ste(s, sid)) {
        u64 *table = pages(64ul << SPLIT, 64ul << SPLIT);
        for (u32 i = 0; i < 1u << SPLIT; i++)
            table[8 * i] = STE_V | STE_ABORT;
        dsb();
        *l1std = (u64)table | (SPLIT + 1);
        dsb();
        /* All 2^SPLIT StreamIDs: that there was no table may be cached for each (4.3.2). */
        issue(s, CFGI_STE_RANGE | (u64)(sid & ~((1u << SPLIT) - 1)) << 32, SPLIT - 1);
    }
    unlock(&making);
    return (u64 *)(*l1std & ADDRESS) + 8 * (sid & ((1u << SPLIT) - 1));
}

static void forget_ste(struct smmu *s, u32 sid)
{
#ifndef MISTAKE_NO_CFGI
    issue(s, CFGI_STE | (u64)sid << 32, LEAF);
#else
    (void)s, (void)sid;
#endif
}

void smmu_attach(struct smmu *s, u32 sid, struct space *space)
{
    volatile u64 *ste = ste_of(s, sid);

    ste[1] = STE_CD_CACHED;
    dsb();
    forget_ste(s, sid);
    issue(s, CFGI_CD | (u64)sid << 32, LEAF);
    ste[0] = STE_V | STE_S1 | (u64)space->cd;
    dsb();
    forget_ste(s, sid);
}

void smmu_detach(struct smmu *s, u32 sid, struct space *space)
{
    volatile u64 *ste = ste_of(s, sid);

    ste[0] = STE_V | STE_ABORT;
    dsb();
    forget_ste(s, sid);
    issue(s, TLBI_NH_ASID | (u64)space->asid << 48, 0);
}

/* Address spaces. */

void space_make(struct smmu *s, struct space *space, u32 asid)
{
    space->asid = asid;
    space->root = pages(4096, 4096);
    space->cd = pages(64, 64);
    space->cd[3] = MAIR_WB;
    space->cd[1] = (u64)space->root;
    space->cd[0] = CD_T0SZ | CD_WALKS | CD_EPD1 | CD_V | (u64)(s->idr5 & 7) << 32 | CD_AA64 |
                   CD_R | CD_A | CD_ASET | (u64)asid << 48;
    dsb();
}

static volatile u64 *entry_of(struct space *space, u64 iova)
{
    u64 *table = space->root;

    for (int shift = 39; shift > 12; shift -= 9) {
        u64 *entry = table + (iova >> shift & 511);
        if (!*entry) {
            u64 *lower = pages(4096, 4096);
            dsb();
            *entry = (u64)lower | PTE_TABLE;
        }
        table = (u64 *)(*entry & ADDRESS);
    }
    return table + (iova >> 12 & 511);
}

void space_map(struct space *space, u64 iova, u64 address, bool writable)
{
    *entry_of(space, iova) = address | PTE_PAGE | (writable ? 0 : PTE_READONLY);
    dsb();
}

void space_unmap(struct smmu *s, struct space *space, u64 iova)
{
    *entry_of(space, iova) = 0;
    dsb();
#if defined(MISTAKE_NO_SYNC)
    push(s, TLBI_NH_VA | (u64)space->asid << 48, iova | LEAF);
#elif defined(MISTAKE_COMMAND)
    issue(s, 0xff, iova);
#elif !defined(MISTAKE_NO_TLBI)
    issue(s, TLBI_NH_VA | (u64)space->asid << 48, iova | LEAF);
#else
    (void)s;
#endif
}

/* Interrupt: take every record, say so, look again; then the global errors (6.3.19). */

static void take(struct smmu *s, const volatile u64 *record)
{
    volatile struct event *event = &s->events[s->taken];

    if (s->taken == EVENTS_KEPT)
        die("more events than anybody caused", s->taken);
    event->type = record[0] & 0xff;
    event->sid = record[0] >> 32;
    event->read = record[1] >> 35 & 1;
    event->address = record[2];
    s->taken++;
}

void smmu_interrupt(struct smmu *s)
{
    u32 mask = (2u << s->eventq_log2) - 1, prod = get(s, EVENTQ_PROD);

    while ((prod ^ s->event_cons) & mask) {
        take(s, s->eventq + 4 * (s->event_cons & mask >> 1));
        s->event_cons = next(s->event_cons, s->eventq_log2);
        dsb();
#ifndef MISTAKE_NO_CONS
        set(s, EVENTQ_CONS, s->event_cons | (prod & 1u << 31));
#endif
        prod = get(s, EVENTQ_PROD);
    }
    u32 active = get(s, GERROR) ^ get(s, GERRORN);
    if (active) {
        s->gerrors |= active;
        set(s, GERRORN, get(s, GERROR));
    }
}
