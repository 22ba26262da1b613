/* SPDX-License-Identifier: Apache-2.0
 *
 * What the keys of charges are (core/ptrmap.h).
 */
#ifndef VGPU_CUDA_KINDS_H
#define VGPU_CUDA_KINDS_H

enum vgpu_kind {
    VGPU_KIND_POINTER = 1, /* of cuMemAlloc */
    VGPU_KIND_ARRAY,
    VGPU_KIND_MIPMAP,
    VGPU_KIND_POOLED,  /* stream-ordered; its owner is the pool's record */
    VGPU_KIND_GRAPH,   /* an executable graph: what a launch takes */
    VGPU_KIND_CAPTURE, /* a stream that is being captured */
    VGPU_KIND_GREEN,   /* a green context; for bytes: the ordinal */
    VGPU_KIND_CONTEXT,
    VGPU_KIND_LIMIT, /* a heap of a context */
    VGPU_KIND_MANAGED,
    VGPU_KIND_HOSTED,   /* on the host instead */
    VGPU_KIND_VISITING, /* managed memory that was moved to another device: managed.c */
    VGPU_KIND_BLOCK,    /* of small allocations; for bytes: how many lie in it */
    VGPU_KIND_LOCAL,    /* memory of the threads of a context */
    VGPU_KIND_THREAD,   /* an executable graph: what each thread of its kernels needs; nothing is charged */
    VGPU_KIND_LAUNCHED, /* a function that has no estimate of its own; nothing is charged */
    VGPU_KIND_KERNEL,   /* a function of a library, which owns it; nothing is charged */
    VGPU_KIND_HANDLE,   /* of memory of cuMemCreate, or a multicast object: its owner is the record, its bytes how often
                         */
};

#endif
