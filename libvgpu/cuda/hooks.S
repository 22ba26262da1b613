/* SPDX-License-Identifier: Apache-2.0 */
/* How far each hook of hooks.def is from this table: known when the library is linked, so that the loader has nothing to
 * write into it (real.c). */
#define DISTANCE(symbol) .long symbol - vgpu__hook_distances;
#define HOOK(symbol, what) DISTANCE(symbol)
#define HOOK2(symbol, what) DISTANCE(symbol) DISTANCE(symbol##_ptsz)
#define HOOK_PTDS(symbol, what) DISTANCE(symbol) DISTANCE(symbol##_ptds)

    .section .rodata
    .p2align 2
    .globl vgpu__hook_distances
    .hidden vgpu__hook_distances
vgpu__hook_distances:
#include "cuda/hooks.def"

    .section .note.GNU-stack, "", %progbits
