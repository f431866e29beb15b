/* SPDX-License-Identifier: BSD-2-Clause */
/* The board of vsmmu.testing.live (docs/live.md) and the few things of the CPU that are needed. */
#ifndef BOARD_H
#define BOARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* No global offset table, so that a flat copy runs anywhere. */
#pragma GCC visibility push(hidden)

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define GICD 0x03001000ul
#define GICC 0x03002000ul
#define CONSOLE 0x22000000ul
#define EXIT 0x22010000ul

/* One row of the table that x0 points to; the first word there is the number of rows. */
struct master {
    u64 smmu, eventq_spi, gerror_spi, edges, sid, dma;
};

static inline u32 read32(u64 a) { return *(volatile u32 *)a; }
static inline u64 read64(u64 a) { return *(volatile u64 *)a; }
static inline void write32(u64 a, u32 v) { *(volatile u32 *)a = v; }
static inline void write64(u64 a, u64 v) { *(volatile u64 *)a = v; }

static inline void dsb(void) { __asm__ volatile("dsb sy" ::: "memory"); }
static inline void wfi(void) { __asm__ volatile("wfi" ::: "memory"); }
static inline void irq_on(void) { __asm__ volatile("msr daifclr, #2" ::: "memory"); }
static inline void irq_off(void) { __asm__ volatile("msr daifset, #2" ::: "memory"); }

static inline void lock(volatile u32 *l)
{
    u32 seen, failed;

    __asm__ volatile("1: ldaxr %w0, [%2]\n"
                     "   cbnz  %w0, 1b\n"
                     "   stxr  %w1, %w3, [%2]\n"
                     "   cbnz  %w1, 1b\n"
                     : "=&r"(seen), "=&r"(failed) : "r"(l), "r"(1) : "memory");
}

static inline void unlock(volatile u32 *l)
{
    __asm__ volatile("stlr wzr, [%0]" :: "r"(l) : "memory");
}

void put(const char *text);
void put_hex(u64 value);
void leave_with(u32 code) __attribute__((noreturn));
/* Ends the run with code 1 after saying what was expected. */
void die(const char *what, u64 value) __attribute__((noreturn));
/* Zeroed pages, for ever. */
void *pages(u64 size, u64 align);

#endif
