/* SPDX-License-Identifier: Apache-2.0 */
/* The functions of a driver's library, each a jump to where gate.c has said. A jump keeps caller and arguments as they came.
 * GATE_CUDA or GATE_NVML says which library. */
#if defined(__x86_64__)
#define JUMP(slot)                                                                                                         \
    endbr64;                                                                                                               \
    jmp *slot(%rip)
#elif defined(__aarch64__)
#define JUMP(slot)                                                                                                         \
    hint 34;                                                                                                                 \
    adrp x16, slot;                                                                                                        \
    ldr x16, [x16, :lo12:slot];                                                                                           \
    br x16
#else
#error "no gate for this processor"
#endif

#define FUNCTION(symbol)                                                                                                   \
    .text;                                                                                                                 \
    .p2align 4;                                                                                                            \
    .globl symbol;                                                                                                         \
    .type symbol, %function;                                                                                               \
    symbol: JUMP(vgpu__slot_##symbol);                                                                                     \
    .size symbol, . - symbol;                                                                                              \
    .data;                                                                                                                 \
    .p2align 3;                                                                                                            \
    .globl vgpu__slot_##symbol;                                                                                            \
    .hidden vgpu__slot_##symbol;                                                                                           \
    vgpu__slot_##symbol: .quad vgpu__missing;

#ifdef GATE_CUDA
#define HOOK(symbol, what) FUNCTION(symbol)
#define HOOK2(symbol, what) FUNCTION(symbol) FUNCTION(symbol##_ptsz)
#define HOOK_PTDS(symbol, what) FUNCTION(symbol) FUNCTION(symbol##_ptds)
#define REASON(id, text)
#define PASSED(symbol, reason) FUNCTION(symbol)
#define PASSED_PTSZ(symbol, reason) FUNCTION(symbol) FUNCTION(symbol##_ptsz)
#define PASSED_PTDS(symbol, reason) FUNCTION(symbol) FUNCTION(symbol##_ptds)
#include "gate/cuda_functions.def"
#else
#define NVML_API(symbol, params) FUNCTION(symbol)
#include "abi/nvml_api.def"
FUNCTION(nvmlErrorString)
#endif

    .section .note.GNU-stack, "", %progbits
