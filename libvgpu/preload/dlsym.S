/* SPDX-License-Identifier: Apache-2.0
 *
 * dlsym and dlvsym. The C library tells RTLD_NEXT from the return address of the call, so where we have nothing to say we must
 * leave by a jump, with the caller's return address and arguments as they came: no C compiler promises that, hence assembly.
 *
 *     hook = vgpu__choose_dlsym(handle, name); if (hook) return hook != VGPU_NOTHING ? hook : NULL; goto *vgpu__real_dlsym;
 */
#if defined(__x86_64__)
    .text

    .macro entry name choose real
    .globl \name
    .type \name, @function
    .p2align 4
\name:
    .cfi_startproc
    endbr64
    pushq %rdi
    .cfi_adjust_cfa_offset 8
    pushq %rsi
    .cfi_adjust_cfa_offset 8
    pushq %rdx
    .cfi_adjust_cfa_offset 8
    call \choose
    popq %rdx
    .cfi_adjust_cfa_offset -8
    popq %rsi
    .cfi_adjust_cfa_offset -8
    popq %rdi
    .cfi_adjust_cfa_offset -8
    testq %rax, %rax
    jnz 1f
    jmpq *\real(%rip)
1:  cmpq $1, %rax
    jne 2f
    xorl %eax, %eax
2:  ret
    .cfi_endproc
    .size \name, . - \name
    .endm

#elif defined(__aarch64__)
    .text

    .macro entry name choose real
    .globl \name
    .type \name, @function
    .p2align 4
\name:
    .cfi_startproc
    stp x29, x30, [sp, #-48]!
    .cfi_def_cfa_offset 48
    .cfi_offset 29, -48
    .cfi_offset 30, -40
    stp x0, x1, [sp, #16]
    str x2, [sp, #32]
    mov x29, sp
    bl \choose
    mov x9, x0
    ldp x0, x1, [sp, #16]
    ldr x2, [sp, #32]
    ldp x29, x30, [sp], #48
    .cfi_def_cfa_offset 0
    cbnz x9, 1f
    adrp x16, \real
    ldr x16, [x16, #:lo12:\real]
    br x16
1:  cmp x9, #1
    csel x0, xzr, x9, eq
    ret
    .cfi_endproc
    .size \name, . - \name
    .endm

#else
#error "libvgpu is built for x86-64 and aarch64"
#endif

    entry dlsym, vgpu__choose_dlsym, vgpu__real_dlsym
    entry dlvsym, vgpu__choose_dlvsym, vgpu__real_dlvsym

    .section .note.GNU-stack, "", %progbits
