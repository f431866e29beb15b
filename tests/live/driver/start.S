/* SPDX-License-Identifier: BSD-2-Clause */
/* Entry of every CPU at EL1, MMU off: x0 is handed on to kernel_main. And the exception vectors. */

    .section .text.start, "ax"
    .global _start
_start:
    mov     x19, x0
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el1, x1
    mrs     x20, mpidr_el1
    and     x20, x20, #0xff
    adrp    x1, stacks
    add     x1, x1, :lo12:stacks
    add     x2, x20, #1
    lsl     x2, x2, #13
    add     sp, x1, x2
    cbnz    x20, 2f
    adrp    x1, bss_start
    add     x1, x1, :lo12:bss_start
    adrp    x2, bss_end
    add     x2, x2, :lo12:bss_end
1:  cmp     x1, x2
    b.hs    2f
    stp     xzr, xzr, [x1], #16
    b       1b
2:  mov     x0, x19
    mov     x1, x20
    bl      kernel_main
3:  wfi
    b       3b

    /* The registers that a function may change, then ELR and SPSR; 0xc0 bytes. */
    .macro  save
    sub     sp, sp, #0xc0
    stp     x0, x1, [sp, #0x00]
    stp     x2, x3, [sp, #0x10]
    stp     x4, x5, [sp, #0x20]
    stp     x6, x7, [sp, #0x30]
    stp     x8, x9, [sp, #0x40]
    stp     x10, x11, [sp, #0x50]
    stp     x12, x13, [sp, #0x60]
    stp     x14, x15, [sp, #0x70]
    stp     x16, x17, [sp, #0x80]
    stp     x18, x30, [sp, #0x90]
    mrs     x0, elr_el1
    mrs     x1, spsr_el1
    stp     x0, x1, [sp, #0xa0]
    .endm

    .text
leave:
    ldp     x0, x1, [sp, #0xa0]
    msr     elr_el1, x0
    msr     spsr_el1, x1
    ldp     x0, x1, [sp, #0x00]
    ldp     x2, x3, [sp, #0x10]
    ldp     x4, x5, [sp, #0x20]
    ldp     x6, x7, [sp, #0x30]
    ldp     x8, x9, [sp, #0x40]
    ldp     x10, x11, [sp, #0x50]
    ldp     x12, x13, [sp, #0x60]
    ldp     x14, x15, [sp, #0x70]
    ldp     x16, x17, [sp, #0x80]
    ldp     x18, x30, [sp, #0x90]
    add     sp, sp, #0xc0
    eret

    .macro  vector function
    .balign 128
    save
    mov     x0, sp
    bl      \function
    b       leave
    .endm

    .balign 2048
vectors:
    .rept   4
    vector  on_unexpected
    .endr
    vector  on_fault
    vector  on_interrupt
    .rept   10
    vector  on_unexpected
    .endr
