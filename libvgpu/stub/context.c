/* SPDX-License-Identifier: Apache-2.0 */
/* Contexts: primary ones, created ones, and each thread's stack of current ones. */
#include "work.h"

#include <string.h>

#define STACK_DEPTH 64

/* A fork's child starts a new generation: what threads remember of an older one is void. */
static unsigned generation = 1;
static unsigned long long last_context_id;
static CUcontext contexts; /* all that live */

static _Thread_local struct {
    unsigned generation;
    unsigned depth;
    struct {
        CUcontext context;
        uint64_t turn; /* the handle may come again, as another context's */
    } stack[STACK_DEPTH];
    struct {
        CUcontext context;
        unsigned long long context_id;
        CUstream stream;
    } own_stream[4]; /* CU_STREAM_PER_THREAD */
    unsigned own_stream_next;
} thread;

static void thread_check(void) {
    if (thread.generation != generation) {
        memset(&thread, 0, sizeof thread);
        thread.generation = generation;
    }
}

void context_forget_all(void) {
    generation++;
    contexts = NULL;
}

CUresult current_context(CUcontext *context) {
    REQUIRE(__atomic_load_n(&driver.ready, __ATOMIC_ACQUIRE), CUDA_ERROR_NOT_INITIALIZED);
    thread_check();
    *context = thread.depth ? thread.stack[thread.depth - 1].context : NULL;
    REQUIRE(*context, CUDA_ERROR_INVALID_CONTEXT);
    REQUIRE(handle_turn(*context) == thread.stack[thread.depth - 1].turn, CUDA_ERROR_CONTEXT_IS_DESTROYED);
    return CUDA_SUCCESS;
}

static CUresult own_stream(CUcontext context, CUstream *stream) {
    for (unsigned i = 0; i < 4; i++) {
        if (thread.own_stream[i].context == context && thread.own_stream[i].context_id == context->id) {
            *stream = thread.own_stream[i].stream;
            return CUDA_SUCCESS;
        }
    }
    *stream = queue_stream_make(context, CU_STREAM_DEFAULT, 0);
    REQUIRE(*stream, CUDA_ERROR_OUT_OF_MEMORY);
    unsigned place = thread.own_stream_next++ % 4;
    thread.own_stream[place].context = context;
    thread.own_stream[place].context_id = context->id;
    thread.own_stream[place].stream = *stream;
    return CUDA_SUCCESS;
}

CUresult resolve_stream(CUstream handle, CUstream *stream) {
    CUcontext context;
    if (handle == NULL || handle == CU_STREAM_LEGACY) {
        TRY(current_context(&context));
        *stream = context->legacy;
        return CUDA_SUCCESS;
    }
    if (handle == CU_STREAM_PER_THREAD) {
        TRY(current_context(&context));
        return own_stream(context, stream);
    }
    REQUIRE(__atomic_load_n(&driver.ready, __ATOMIC_ACQUIRE), CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(handle_lives(handle), CUDA_ERROR_INVALID_HANDLE);
    *stream = handle;
    return CUDA_SUCCESS;
}

/* ---- Local memory: for as many threads as the card can run, each with the most that one has wanted; never less ----
 */

static uint64_t local_bytes(const struct device *device, uint64_t thread_bytes) {
    uint64_t threads = (uint64_t)device->card.shared->multiprocessors * THREADS_PER_MULTIPROCESSOR;
    return threads * ((thread_bytes + 255) / 256 * 256);
}

CUresult context_local(CUcontext context, uint64_t thread_bytes) {
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&driver.lock);
    if (thread_bytes > context->thread_bytes) {
        uint64_t more =
            local_bytes(context->device, thread_bytes) - local_bytes(context->device, context->thread_bytes);
        if (device_charge(context->device, more))
            context->thread_bytes = thread_bytes;
        else
            result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_mutex_unlock(&driver.lock);
    return result;
}

/* ---- Making and unmaking ---- */

/* Under driver.lock. */
static CUresult context_make(struct device *device, unsigned flags, CUcontext *out) {
    TRY(device_join(device));
    uint64_t own_bytes = device->card.shared->context_bytes;
    REQUIRE(device_charge(device, own_bytes), CUDA_ERROR_OUT_OF_MEMORY);
    CUcontext context = handle_take(HANDLE_CONTEXT, sizeof *context);
    if (context) {
        context->device = device;
        context->flags = flags;
        context->uses = 1;
        context->id = ++last_context_id;
        context->limits[CU_LIMIT_STACK_SIZE] = context->thread_bytes = STACK_BYTES;
        context->limits[CU_LIMIT_PRINTF_FIFO_SIZE] = FIFO_BYTES;
        context->limits[CU_LIMIT_MALLOC_HEAP_SIZE] = HEAP_BYTES;
        context->legacy = queue_stream_make(context, CU_STREAM_DEFAULT, 0);
    }
    if (!context || !context->legacy) {
        if (context)
            handle_give(context);
        device_credit(device, own_bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    context->legacy->legacy = true;
    context->next = contexts;
    contexts = context;
    __atomic_fetch_add(&device->card.slot->contexts, 1, __ATOMIC_RELAXED);
    *out = context;
    return CUDA_SUCCESS;
}

/* Frees what the context owns. A thread may still have it on its stack. Under driver.lock. */
static void context_unmake(CUcontext context) {
    queue_wait_context(context);
    while (context->allocations) {
        struct allocation *record = context->allocations;
        if (record->pool && !record->freed) {
            pool_give(record->pool, record->size, NULL);
            if (record->kind == ALLOCATION_ASYNC)
                pool_left(record->pool);
        }
        if (record->array)
            handle_give(record->array);
        if (record->kind == ALLOCATION_RESERVATION)
            reservation_clear(record);
        allocation_drop(record);
    }
    modules_unload_all(context);
    while (context->streams)
        queue_stream_free(context->streams);
    events_end(context);
    pools_settle(context->device);
    for (CUcontext *at = &contexts; *at; at = &(*at)->next) {
        if (*at == context) {
            *at = context->next;
            break;
        }
    }
    __atomic_fetch_sub(&context->device->card.slot->contexts, 1, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < sizeof context->heap_bytes / sizeof *context->heap_bytes; i++)
        device_credit(context->device, context->heap_bytes[i]);
    device_credit(context->device,
                  local_bytes(context->device, context->thread_bytes) - local_bytes(context->device, STACK_BYTES));
    device_credit(context->device, context->device->card.shared->context_bytes);
    handle_give(context);
}

static CUresult push(CUcontext context) {
    thread_check();
    REQUIRE(thread.depth < STACK_DEPTH, CUDA_ERROR_INVALID_VALUE);
    thread.stack[thread.depth].context = context;
    thread.stack[thread.depth++].turn = handle_turn(context);
    return CUDA_SUCCESS;
}

/* ---- Primary contexts ---- */

CUresult stub_cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(out, CUDA_ERROR_INVALID_VALUE);
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&driver.lock);
    if (device->primary) {
        device->primary->uses++;
    } else {
        result = context_make(device, device->primary_flags, &device->primary);
        if (result == CUDA_SUCCESS)
            device->primary->primary = true;
    }
    *out = device->primary;
    pthread_mutex_unlock(&driver.lock);
    return result;
}

CUresult stub_cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&driver.lock);
    if (!device->primary) {
        result = CUDA_ERROR_INVALID_CONTEXT;
    } else if (--device->primary->uses == 0) {
        context_unmake(device->primary);
        device->primary = NULL;
    }
    pthread_mutex_unlock(&driver.lock);
    return result;
}

CUresult stub_cuDevicePrimaryCtxRelease(CUdevice ordinal) {
    return stub_cuDevicePrimaryCtxRelease_v2(ordinal);
}

CUresult stub_cuDevicePrimaryCtxReset_v2(CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    pthread_mutex_lock(&driver.lock);
    if (device->primary) {
        context_unmake(device->primary);
        device->primary = NULL;
    }
    pthread_mutex_unlock(&driver.lock);
    return CUDA_SUCCESS;
}

CUresult stub_cuDevicePrimaryCtxReset(CUdevice ordinal) {
    return stub_cuDevicePrimaryCtxReset_v2(ordinal);
}

CUresult stub_cuDevicePrimaryCtxSetFlags_v2(CUdevice ordinal, unsigned flags) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    device->primary_flags = flags;
    if (device->primary)
        device->primary->flags = flags;
    return CUDA_SUCCESS;
}

CUresult stub_cuDevicePrimaryCtxSetFlags(CUdevice ordinal, unsigned flags) {
    return stub_cuDevicePrimaryCtxSetFlags_v2(ordinal, flags);
}

CUresult stub_cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned *flags, int *active) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(flags && active, CUDA_ERROR_INVALID_VALUE);
    *flags = device->primary_flags;
    *active = device->primary != NULL;
    return CUDA_SUCCESS;
}

/* ---- Created contexts ---- */

CUresult stub_cuCtxCreate_v2(CUcontext *out, unsigned flags, CUdevice ordinal) {
    struct device *device;
    TRY(device_of(ordinal, &device));
    REQUIRE(out && flags <= 0xff, CUDA_ERROR_INVALID_VALUE);
    pthread_mutex_lock(&driver.lock);
    CUresult result = context_make(device, flags, out);
    pthread_mutex_unlock(&driver.lock);
    return result == CUDA_SUCCESS ? push(*out) : result;
}

CUresult stub_cuCtxCreate(CUcontext *out, unsigned flags, CUdevice ordinal) {
    return stub_cuCtxCreate_v2(out, flags, ordinal);
}

CUresult stub_cuCtxCreate_v3(CUcontext *out, CUexecAffinityParam *affinity, int count, unsigned flags,
                             CUdevice ordinal) {
    REQUIRE(count == 0 || affinity, CUDA_ERROR_INVALID_VALUE);
    return stub_cuCtxCreate_v2(out, flags, ordinal);
}

CUresult stub_cuCtxCreate_v4(CUcontext *out, CUctxCreateParams *params, unsigned flags, CUdevice ordinal) {
    (void)params;
    return stub_cuCtxCreate_v2(out, flags, ordinal);
}

CUresult stub_cuCtxDestroy_v2(CUcontext context) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(handle_lives(context) && !context->primary, CUDA_ERROR_INVALID_CONTEXT);
    CUcontext current;
    bool here = current_context(&current) == CUDA_SUCCESS && current == context;
    pthread_mutex_lock(&driver.lock);
    context_unmake(context);
    pthread_mutex_unlock(&driver.lock);
    if (here)
        thread.depth--;
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxDestroy(CUcontext context) {
    return stub_cuCtxDestroy_v2(context);
}

CUresult stub_cuCtxAttach(CUcontext *out, unsigned flags) {
    REQUIRE(out && flags == 0, CUDA_ERROR_INVALID_VALUE);
    TRY(current_context(out));
    (*out)->uses++;
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxDetach(CUcontext context) {
    REQUIRE(handle_lives(context), CUDA_ERROR_INVALID_CONTEXT);
    return --context->uses == 0 ? stub_cuCtxDestroy_v2(context) : CUDA_SUCCESS;
}

/* ---- The current context ---- */

CUresult stub_cuCtxPushCurrent_v2(CUcontext context) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(context, CUDA_ERROR_INVALID_CONTEXT);
    REQUIRE(handle_lives(context), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    return push(context);
}

CUresult stub_cuCtxPopCurrent_v2(CUcontext *out) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    thread_check();
    REQUIRE(thread.depth, CUDA_ERROR_INVALID_CONTEXT);
    CUcontext top = thread.stack[--thread.depth].context;
    if (out)
        *out = top;
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxPushCurrent(CUcontext context) {
    return stub_cuCtxPushCurrent_v2(context);
}
CUresult stub_cuCtxPopCurrent(CUcontext *out) {
    return stub_cuCtxPopCurrent_v2(out);
}

CUresult stub_cuCtxSetCurrent(CUcontext context) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(!context || handle_lives(context), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    thread_check();
    if (thread.depth)
        thread.depth--;
    return context ? push(context) : CUDA_SUCCESS;
}

CUresult stub_cuCtxGetCurrent(CUcontext *out) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(out, CUDA_ERROR_INVALID_VALUE);
    thread_check();
    *out = thread.depth ? thread.stack[thread.depth - 1].context : NULL;
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxGetDevice(CUdevice *device) {
    CUcontext context;
    REQUIRE(device, CUDA_ERROR_INVALID_VALUE);
    TRY(current_context(&context));
    *device = context->device->ordinal;
    return CUDA_SUCCESS;
}

static CUresult synchronize(CUcontext context) {
    bool capturing = false;
    queue_hold(context);
    for (CUstream stream = context->streams; stream; stream = stream->next)
        capturing |= CAPTURING(stream);
    queue_let_go(context);
    REQUIRE(!capturing, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    queue_wait_context(context);
    pools_settle(context->device);
    return CUDA_SUCCESS;
}

CUresult stub_cuCtxSynchronize(void) {
    CUcontext context;
    TRY(current_context(&context));
    return synchronize(context);
}

CUresult stub_cuCtxSynchronize_v2(CUcontext context) {
    REQUIRE(handle_lives(context), CUDA_ERROR_INVALID_CONTEXT);
    return synchronize(context);
}
