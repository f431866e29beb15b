/* SPDX-License-Identifier: BSD-2-Clause */
/* What the driver is tried with: every master maps, copies, faults, is unmapped and detached. */
#include "smmu.h"

#define MASTERS_MAX 16
#define CPUS_MAX 2
#define SIZE 96
#define SOURCE 0x10000000ul
#define TARGET 0x7fff00000000ul
#define READONLY 0x20000000ul
#define NOWHERE 0x08000000ul

/* The DMA engine's registers (docs/live.md). */
enum { DMA_SRC = 0x00, DMA_DST = 0x08, DMA_LEN = 0x10, DMA_GO = 0x14, DMA_STATUS = 0x18 };
enum { DMA_BUSY = 1, DMA_DONE = 2, DMA_ERR = 4 };

extern u8 pool_start[], pool_end[];

static struct smmu smmus[MASTERS_MAX];
static u32 smmu_count;
static u8 *pool_next;
static volatile u32 pool_lock, console_lock;
static volatile bool abort_expected, abort_seen;
/* In .data: another CPU reads it before the first has cleared .bss. */
static volatile u32 booted __attribute__((section(".data"))) = 0;
static volatile u32 finished;

static void put_char(char c) { write32(CONSOLE, (u8)c); }

void put(const char *text)
{
    while (*text)
        put_char(*text++);
}

void put_hex(u64 value)
{
    int shift = 60;

    put("0x");
    while (shift && !(value >> shift))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        put_char("0123456789abcdef"[value >> shift & 15]);
}

void leave_with(u32 code)
{
    write32(EXIT, code);
    for (;;)
        wfi();
}

void die(const char *what, u64 value)
{
    put("failed: ");
    put(what);
    put(" ");
    put_hex(value);
    put("\n");
    leave_with(1);
}

/* Whole pages. */
static void zero(u8 *from, u8 *end)
{
    for (; from < end; from += 64)
        __asm__ volatile("stp xzr, xzr, [%0]\n stp xzr, xzr, [%0, #16]\n"
                         "stp xzr, xzr, [%0, #32]\n stp xzr, xzr, [%0, #48]"
                         :: "r"(from) : "memory");
}

void *pages(u64 size, u64 align)
{
    lock(&pool_lock);
    u8 *place = pool_next ? pool_next : pool_start;
    align = align < 4096 ? 4096 : align;
    size = (size + 4095) & ~4095ul;
    place = (u8 *)(((u64)place + align - 1) & ~(align - 1));
    if (place + size > pool_end)
        die("out of pages", size);
    pool_next = place + size;
    unlock(&pool_lock);
    zero(place, place + size);
    return place;
}

/* Exceptions. A frame has ELR at 0xa0. */

void on_unexpected(u64 *frame) { die("unexpected exception at", frame[20]); }

void on_fault(u64 *frame)
{
    u64 esr, far;

    __asm__ volatile("mrs %0, esr_el1\n mrs %1, far_el1" : "=r"(esr), "=r"(far));
    /* A data abort from EL1, synchronous external, at the expected address. */
    if (!abort_expected || esr >> 26 != 0x25 || (esr & 0x3f) != 0x10 || far != NOWHERE)
        die("fault at", frame[20]);
    abort_seen = true;
    frame[20] += 4;
}

void on_interrupt(u64 *frame)
{
    u32 id = read32(GICC + 0x0c) & 0x3ff;

    (void)frame;
    if (id == 1023)
        return;
    for (u32 i = 0; i < smmu_count; i++)
        smmu_interrupt(&smmus[i]);
    write32(GICC + 0x10, id);
}

static void enable_interrupt(u32 id, bool edge)
{
    u64 config = GICD + 0xc00 + id / 16 * 4;

    if (!id)
        return;
    if (edge)
        write32(config, read32(config) | 2u << id % 16 * 2);
    *(volatile u8 *)(GICD + 0x400 + id) = 0x80;
    *(volatile u8 *)(GICD + 0x800 + id) = 1;
    write32(GICD + 0x100 + id / 32 * 4, 1u << id % 32);
}

static void interrupts_on(const struct master *masters, u64 count)
{
    for (u64 i = 0; i < count; i++) {
        enable_interrupt(masters[i].eventq_spi, masters[i].edges & 1);
        enable_interrupt(masters[i].gerror_spi, masters[i].edges & 2);
    }
    write32(GICD, 1);
    write32(GICC + 0x04, 0xf0);
    write32(GICC, 1);
    irq_on();
}

/* Records of one StreamID: `seen` counts those of its SMMU that were looked at. */
struct watch {
    struct smmu *smmu;
    u32 sid, seen;
    u64 cpu;
};

static bool next_event(struct watch *w, struct event *event)
{
    while (w->seen < w->smmu->taken) {
        volatile struct event *e = &w->smmu->events[w->seen++];
        if (e->sid == w->sid) {
            *event = (struct event){e->type, e->read, e->sid, e->address};
            return true;
        }
    }
    return false;
}

/* Waits for one; CPU 0 alone takes interrupts, so another one looks again and again. */
static struct event wait_event(struct watch *w)
{
    struct event event;

    for (u32 i = 0; i < 20000; i++) {
        irq_off();
        bool there = next_event(w, &event);
        if (!there && !w->cpu)
            wfi();
        irq_on();
        if (there)
            return event;
    }
    die("no event of StreamID", w->sid);
}

/* One copy by a DMA engine; whether all of it went through. */
static bool copy(const struct master *m, u64 source, u64 target)
{
    write64(m->dma + DMA_SRC, source);
    write64(m->dma + DMA_DST, target);
    write32(m->dma + DMA_LEN, SIZE);
    write32(m->dma + DMA_GO, 1);
    for (u32 i = 0; i < 200000; i++) {
        u32 status = read32(m->dma + DMA_STATUS);
        if (status != DMA_BUSY)
            return status == DMA_DONE;
    }
    die("DMA engine stays busy", m->dma);
}

static void fill(u8 *page, u8 seed)
{
    for (u32 i = 0; i < SIZE; i++)
        page[i] = seed + 7 * i;
}

static bool holds(const volatile u8 *page, u8 seed)
{
    for (u32 i = 0; i < SIZE; i++)
        if (page[i] != (u8)(seed + 7 * i))
            return false;
    return true;
}

static void expect_event(struct watch *w, u8 type, u64 address)
{
    struct event got = wait_event(w);

    if (got.type != type)
        die("event of type", got.type);
    if (address && (got.address != address || got.read))
        die("event at", got.address);
}

static void say(const struct master *m, const char *what)
{
    lock(&console_lock);
    put("master ");
    put_hex(m->sid);
    put(" behind ");
    put_hex(m->smmu);
    put(": ");
    put(what);
    put("\n");
    unlock(&console_lock);
}

/* Everything that is tried with one master. Faults with an address are those of writes. */
static void try(const struct master *m, struct smmu *s, u32 asid, u64 cpu)
{
    u8 *source = pages(4096, 4096), *target = pages(4096, 4096), *other = pages(4096, 4096);
    struct watch watch = {s, m->sid, s->taken, cpu};
    struct event unexpected;
    bool known = smmu_has_ste(s, m->sid);
    struct space space;

    fill(source, asid);
    if (copy(m, SOURCE, TARGET))
        die("DMA before attach went through, StreamID", m->sid);
    if (!known)
        expect_event(&watch, C_BAD_STREAMID, 0);

    space_make(s, &space, asid);
    space_map(&space, SOURCE, (u64)source, false);
    space_map(&space, TARGET, (u64)target, true);
    smmu_attach(s, m->sid, &space);
    if (!copy(m, SOURCE, TARGET) || !holds(target, asid))
        die("DMA of mapped pages failed, StreamID", m->sid);
    say(m, "copied");

    space_map(&space, READONLY, (u64)other, false);
    if (copy(m, SOURCE, READONLY))
        die("DMA wrote a read-only page, StreamID", m->sid);
    expect_event(&watch, F_PERMISSION, READONLY);

    fill(source, asid + 1);
    space_unmap(s, &space, TARGET);
    if (copy(m, SOURCE, TARGET))
        die("DMA of an unmapped page went through, StreamID", m->sid);
    expect_event(&watch, F_TRANSLATION, TARGET);
    if (!holds(target, asid))
        die("an unmapped page was written, StreamID", m->sid);
    say(m, "fault taken");

    space_map(&space, TARGET, (u64)other, true);
    if (!copy(m, SOURCE, TARGET) || !holds(other, asid + 1))
        die("DMA of a page mapped again failed, StreamID", m->sid);

    smmu_detach(s, m->sid, &space);
    if (copy(m, SOURCE, TARGET))
        die("DMA after detach went through, StreamID", m->sid);
    if (next_event(&watch, &unexpected))
        die("an event that nobody caused, type", unexpected.type);
    if (s->gerrors)
        die("GERROR", s->gerrors);
    say(m, "detached");
}

static struct smmu *smmu_of(u64 base)
{
    for (u32 i = 0; i < smmu_count; i++)
        if (smmus[i].base == base)
            return &smmus[i];
    return NULL;
}

static void boot(const struct master *masters, u64 count)
{
    for (u64 i = 0; i < count; i++) {
        if (smmu_of(masters[i].smmu))
            continue;
        struct smmu *s = &smmus[smmu_count];
        smmu_boot(s, masters[i].smmu);
        smmu_count++;
        put("SMMU ");
        put_hex(s->base);
        put(s->two_level ? ": two levels, " : ": linear, ");
        put_hex(s->sid_bits);
        put(" bits\n");
    }
}

static void try_abort(void)
{
    abort_expected = true;
    read32(NOWHERE);
    abort_expected = false;
    if (!abort_seen)
        die("no data abort at", NOWHERE);
}

/*
 * table: the masters. Bit 63 of their number says that a second CPU runs, whose is the last one.
 */
void kernel_main(const u64 *table, u64 cpu)
{
    u64 count = *table & 0xff;
    bool both = *table >> 63;
    const struct master *masters = (const struct master *)(table + 1);

    if (cpu >= CPUS_MAX || count > MASTERS_MAX)
        die("too many CPUs or masters", count);
    if (cpu) {
        while (!booted)
            continue;
        try(&masters[count - 1], smmu_of(masters[count - 1].smmu), 0x40, cpu);
        finished = 1;
        return;
    }
    try_abort();
    boot(masters, count);
    interrupts_on(masters, count);
    booted = 1;
    for (u64 i = 0; i < count - both; i++)
        try(&masters[i], smmu_of(masters[i].smmu), 2 * i + 2, 0);
    while (both && !finished)
        continue;
    for (u32 i = 0; i < smmu_count; i++)
        smmu_stop(&smmus[i]);
    put("done\n");
    leave_with(0);
}
