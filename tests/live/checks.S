/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a CPU of the board does, one program for each label. The word at BASE + 4 * n jumps to n.
 * A program leaves what it saw at RESULTS, 8 bytes each, and writes the exit register.
 */
    .equ    RESULTS, 0x40000000
    .equ    SCRATCH, 0x40001000
    .equ    EXIT, 0x22010000
    .equ    HOLE, 0x08000000
    .equ    DEVICE, 0x30000000

    .macro  keep register
    str     \register, [x28], #8
    .endm

    .section .text.start, "ax"
    .global _start
_start:
    b       registers
    b       abort
    b       fetch
    b       lower
    b       widths
    b       undefined
    b       no_vector
    b       rewritten
    b       forever
    b       ping
    b       stack_of_el1t
    b       readonly
    b       own_translation
    b       storm
    b       asleep
    b       wild
    b       aarch32

    .macro  begin
    ldr     x28, =RESULTS
    adr     x27, vectors
    msr     vbar_el1, x27
    .endm
    .macro  leave
    ldr     x27, =EXIT
    str     wzr, [x27]
1:  wfi
    b       1b
    .endm

/* State at reset, and registers that must not tell the host's time. */
registers:
    begin
    mrs     x0, currentel
    keep    x0
    mrs     x0, daif
    keep    x0
    mrs     x0, mpidr_el1
    keep    x0
    mrs     x0, cntfrq_el0
    keep    x0
    mrs     x0, cntvct_el0
    mrs     x1, cntpct_el0
    sub     x1, x1, x0
    keep    x1
    mrs     x0, cntv_tval_el0
    keep    x0
    leave

/* A load and a store where nothing is: the registers of the instruction are as before. */
abort:
    begin
    ldr     x5, =HOLE + 0x18
    mov     x6, #0x77
    ldr     x6, [x5, #0x10]!
    keep    x5
    keep    x6
    strb    w6, [x5], #1
    keep    x5
    ldr     x5, =DEVICE + 8
    ldr     x6, [x5, #8]!
    keep    x5
    keep    x6
    ldr     x5, =DEVICE + 2
    ldr     w6, [x5]
    leave

fetch:
    begin
    ldr     x5, =HOLE
    blr     x5
    leave

/* EL0 and back: SP is banked, SVC comes from the lower level. */
lower:
    begin
    ldr     x0, =SCRATCH + 0x100
    mov     sp, x0
    ldr     x0, =SCRATCH + 0x200
    msr     sp_el0, x0
    msr     spsr_el1, xzr
    adr     x0, 1f
    msr     elr_el1, x0
    eret
1:  mov     x0, sp
    keep    x0
    svc     #0x1234
    ldr     x5, =HOLE
    ldr     x6, [x5]
    svc     #0xffff

widths:
    ldr     x28, =RESULTS
    ldr     x5, =DEVICE
    ldr     x0, =0x1122334455667788
    str     x0, [x5]
    str     w0, [x5, #8]
    strh    w0, [x5, #12]
    strb    w0, [x5, #14]
    stp     x0, x0, [x5, #16]
    ldr     x1, [x5]
    keep    x1
    ldr     w1, [x5, #4]
    keep    x1
    ldrsh   x1, [x5, #2]
    keep    x1
    ldrb    w1, [x5, #7]
    keep    x1
    ldp     x1, x2, [x5]
    keep    x2
    leave

undefined:
    begin
    .inst   0
    brk     #0x42
    hvc     #0
    leave

no_vector:
    ldr     x5, =HOLE
    ldr     x6, [x5]
    leave

/* The second pass runs what was stored over an instruction, the third what a device wrote. */
    .equ    DMA, 0x22100000
rewritten:
    begin
    adr     x5, 2f
    ldr     x7, =DMA
1:  mov     x0, #1
2:  nop
    keep    x0
    cmp     x0, #2
    b.eq    4f
    b.hi    5f
    ldr     w6, 3f
    str     w6, [x5]
    dsb     sy
    ic      ivau, x5
    isb
    b       1b
3:  mov     x0, #2
    mov     x0, #3
4:  adr     x6, 3b + 4
    str     x6, [x7]
    str     x5, [x7, #8]
    mov     w6, #4
    str     w6, [x7, #0x10]
    str     w0, [x7, #0x18]
    mov     w6, #1
    str     w6, [x7, #0x14]
6:  ldr     w6, [x7, #0x18]
    tbnz    w6, #0, 6b
    keep    x6
    b       1b
5:  leave

forever:
    b       forever

/* Pairs of addresses at SCRATCH, ended by 0: stores at the first, waits for the answer at the second. */
ping:
    mov     x9, x0
    mov     x10, #1
1:  ldp     x1, x2, [x9], #16
    cbz     x1, 3f
    str     x10, [x1]
    add     x11, x10, #1000
2:  ldr     x3, [x2]
    cmp     x3, x11
    b.ne    2b
    add     x10, x10, #1
    b       1b
3:  leave

stack_of_el1t:
    begin
    ldr     x0, =SCRATCH + 0x100
    mov     sp, x0
    ldr     x0, =SCRATCH + 0x200
    msr     sp_el0, x0
    msr     spsel, #0
    svc     #1
    mov     x0, sp
    keep    x0
    leave

/* x0: a page that the second stage maps read-only. */
readonly:
    begin
    ldr     x1, [x0]
    keep    x1
    str     x1, [x0]
    leave

/* Its own stage 1 with no valid entry: the next fetch faults, and so does the vector. */
own_translation:
    begin
    ldr     x0, =SCRATCH
    msr     ttbr0_el1, x0
    mov     x0, #16
    msr     tcr_el1, x0
    isb
    mov     x0, #1
    msr     sctlr_el1, x0
    isb
    leave

/* An interrupt whose handler does nothing about it. */
storm:
    begin
    ldr     x0, =0x03001000
    mov     w1, #1
    str     w1, [x0]
    str     w1, [x0, #0x104]
    ldr     x0, =0x03002000
    str     w1, [x0]
    mov     w1, #0xff
    str     w1, [x0, #4]
    mov     x10, #0
    msr     daifclr, #2
1:  add     x10, x10, #1
    b       1b

asleep:
    wfi
    b       asleep

aarch32:
    mov     x0, #0x1d0
    msr     spsr_el1, x0
    ldr     x0, =SCRATCH
    msr     elr_el1, x0
    eret

/*
 * x0: words that may be anything, 1 KiB. Whatever exception they cause, they go on behind it, or
 * at that distance from their start. The other registers are the caller's.
 */
wild:
    mov     x30, x0
    msr     tpidr_el0, x0
    adr     x29, tame
    msr     vbar_el1, x29
    msr     daifclr, #2
    br      x30

/* Every vector says which it was, with the syndrome, and goes on behind the instruction. */
    .macro  vector number
    .balign 128
    mov     x20, #\number
    b       seen
    .endm

    .balign 2048
vectors:
    vector  0
    vector  1
    vector  2
    vector  3
    vector  4
    .balign 128
    eret
    vector  6
    vector  7
    vector  8
    vector  9
    vector  10
    vector  11
    vector  12
    vector  13
    vector  14
    vector  15

seen:
    keep    x20
    mrs     x20, esr_el1
    keep    x20
    mrs     x21, far_el1
    keep    x21
    mrs     x21, elr_el1
    adr     x22, _start
    sub     x22, x21, x22
    keep    x22
    mov     x22, sp
    keep    x22
    lsr     x20, x20, #26
    cmp     x20, #0x21
    b.ne    1f
    msr     elr_el1, x30
    eret
1:  cmp     x20, #0x15
    b.ne    2f
    mrs     x22, esr_el1
    and     x22, x22, #0xffff
    mov     x20, #0xffff
    cmp     x22, x20
    b.eq    3f
    eret
2:  add     x21, x21, #4
    msr     elr_el1, x21
    eret
3:  leave

    .macro  behind
    .balign 128
    msr     tpidr_el1, x29
    mrs     x30, elr_el1
    add     x30, x30, #4
    and     x30, x30, #0x3fc
    mrs     x29, tpidr_el0
    add     x30, x30, x29
    msr     elr_el1, x30
    mov     x29, #0x345
    msr     spsr_el1, x29
    mrs     x29, tpidr_el1
    eret
    .endm

    .balign 2048
tame:
    .rept   16
    behind
    .endr
