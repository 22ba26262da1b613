/* SPDX-License-Identifier: Apache-2.0
 *
 * What all hooks that launch work do: pay its predicted GPU time before, and measure some of it. For the files of this
 * folder.
 *
 *     struct vgpu__launch launch;
 *     CUresult result = vgpu__launch_begin(&launch, key, stream);      may sleep
 *     if (result == CUDA_SUCCESS) {
 *         VGPU_CALL(result, cuGraphLaunch, exec, stream);
 *         vgpu__launch_end(&launch, result);
 *     }
 */
#ifndef VGPU_CUDA_LAUNCH_H
#define VGPU_CUDA_LAUNCH_H

#include "cuda/device.h"

struct vgpu__sample;
struct vgpu_estimate;

struct vgpu__launch {
    struct vgpu__sample *sample; /* measured: its start is recorded. NULL: not measured */
    CUstream stream;
    bool charged;               /* to the calling thread */
    bool first;                 /* its code may come to the device now */
    uint64_t local_bytes;       /* memory of threads that was reserved for it */
    struct vgpu_device *device; /* with what follows: what it was charged, if it was */
    struct vgpu_estimate *estimate;
    uint64_t gpu_ns, guessed_ns;
    bool captured;    /* not charged: it goes into a graph; with what follows */
    uint64_t capture; /* which one */
    uint64_t key;
};

/* The kind of work: a function, or another handle, and its size: blocks, or bytes. */
uint64_t vgpu__launch_key(const void *handle, uint64_t size);

/* `stream` as the driver's non-twin functions take it. CUDA_ERROR_NOT_PERMITTED where the device has no share,
 * CUDA_ERROR_OUT_OF_MEMORY where code would come to one that has more than its share already. */
CUresult vgpu__launch_begin(struct vgpu__launch *launch, uint64_t key, CUstream stream);

/* The same for work without code of the application's. */
CUresult vgpu__launch_begin_copy(struct vgpu__launch *launch, uint64_t key, CUstream stream);

/* What the driver refused costs nothing. */
void vgpu__launch_end(struct vgpu__launch *launch, CUresult result);

/* Stream 0 of a per-thread twin. */
static inline CUstream vgpu__per_thread(CUstream stream) {
    return stream != NULL ? stream : CU_STREAM_PER_THREAD;
}

/* The handle stands for other work from now on, whatever was known of it. */
void vgpu__launch_renew(uint64_t key);
void vgpu__launch_renew_all(void);

/* A stream capture begins (+1) or ends (-1): what is launched into it runs later. */
void vgpu__launch_capture(int change);

/* True if the stream is being captured: what is put on it runs, and takes memory, when its graph is launched. */
bool vgpu__launch_captured(CUstream stream, uint64_t *capture);

/* Around a call that may end a context (NULL: none), and with it the events in it. */
void vgpu__launch_context_ending(CUcontext context, bool surely);
void vgpu__launch_context_ended(CUcontext context, bool ended);

/* The application waited for its work: what is done by now is paid now. */
void vgpu__launch_synchronized(void);

/* The process ends: what it has not paid, the share owes. */
void vgpu__launch_process_ends(void);

/* In a fork's child. */
void vgpu__launch_forget(void);

#endif
