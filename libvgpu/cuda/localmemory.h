/* SPDX-License-Identifier: Apache-2.0
 *
 * Local memory: what threads have for themselves (arrays, spilled registers, stacks). A context has one piece of it,
 * for as many threads as its device can run at once, each with as much as the greediest function that was launched in
 * it wants; it grows before such a launch and never shrinks. So its size is known before: by the attributes of the
 * function and of the device. On a large card each KiB of a function's is 264 MiB of the share.
 *
 * Sources: CUDA driver API, cuCtxSetLimit and CU_CTX_LMEM_RESIZE_TO_MAX; the formula is NVIDIA's
 * (forums.developer.nvidia.com, "Local memory management").
 */
#ifndef VGPU_CUDA_LOCALMEMORY_H
#define VGPU_CUDA_LOCALMEMORY_H

#include "core/share.h"
#include "cuda/real.h"

/* Each thread of the current context may need `thread_bytes` from now on: reserve what the context does not have yet.
 * *grown: how much that is. CUDA_ERROR_OUT_OF_MEMORY: there is no room. */
CUresult vgpu__local_coming(struct vgpu_device *device, uint64_t thread_bytes, uint64_t *grown);

/* It was not taken after all. */
void vgpu__local_not(struct vgpu_device *device, uint64_t grown);

/* A function (`kernel`) or an executable graph that was never launched will be, in the current context. */
CUresult vgpu__local_first(struct vgpu_device *device, void *handle, bool kernel, uint64_t *grown);

/* What each thread of a kernel of a graph needs; and of an executable graph, which `vgpu__local_first` will ask for. */
uint64_t vgpu__local_of_node(CUgraphNode node);
void vgpu__local_graph(CUgraphExec exec, uint64_t thread_bytes);

/* A node of it is another function now. True if its threads need more than those of the others. */
bool vgpu__local_graph_more(CUgraphExec exec, void *function);

/* Bring a function's code to the device, and charge it. CUDA_ERROR_OUT_OF_MEMORY: it is there, but there was no room:
 * it cannot be unloaded alone, so nothing new is launched then. */
CUresult vgpu__local_load(struct vgpu_device *device, CUfunction function);

/* A handle that stands for a function of a library, in whatever context. */
void vgpu__local_kernel(CUkernel kernel, CUlibrary library);

/* Around the call that unloads a library, and with it all of its functions: `keeper` is an address of the caller's own.
 */
void vgpu__local_library_ending(CUlibrary library, void *keeper);
void vgpu__local_library_ended(CUlibrary library, void *keeper, bool ended);

/* In a fork's child. */
void vgpu__local_forget(void);

#endif
