/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that graphs take when they are launched: a device keeps it for all of its graphs, and it is charged like a
 * pool.
 */
#include "core/quota.h"
#include "cuda/device.h"
#include "cuda/place.h"
#include "cuda/poolrecords.h"
#include "cuda/pools.h"

#include <stddef.h>
#include <stdlib.h>

static uint64_t used_by_graphs(CUdevice ordinal) {
    unsigned long long used = 0;
    CUresult result;
    VGPU_CALL(result, cuDeviceGetGraphMemAttribute, ordinal, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT, &used);
    return result == CUDA_SUCCESS ? used : 0;
}

/* ---- Launches that the device is not known to be done with: guarded like the records of pools ---- */

/* A stream. The default ones have no handle of their own: there is one in each context, or for each thread. */
struct line {
    CUstream stream;
    CUcontext context;
    uint64_t thread;
};

struct running {
    struct running *next;
    const struct vgpu__pool *pool;
    struct vgpu__graph_need need;
    struct line line;
    CUcontext context; /* whose end ends the event */
    bool held;         /* that may be now: the event is not to be used */
    CUevent end;
};

static struct running *running;
static char no_stream; /* in the place of one that was destroyed */

static bool has_handle(CUstream stream) {
    return stream != NULL && stream != CU_STREAM_LEGACY && stream != CU_STREAM_PER_THREAD;
}

/* Unlike an address in it, a thread's number is not another's later. */
static uint64_t own_number(void) {
    static __thread uint64_t own __attribute__((tls_model("initial-exec")));
    static uint64_t last;
    if (own == 0)
        own = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    return own;
}

static struct line line_of(CUstream stream, CUcontext current) {
    if (has_handle(stream))
        return (struct line){.stream = stream};
    if (stream == CU_STREAM_PER_THREAD)
        return (struct line){.stream = stream, .context = current, .thread = own_number()};
    return (struct line){.stream = CU_STREAM_LEGACY, .context = current};
}

static bool is_line(const struct line *one, const struct line *other) {
    return one->stream == other->stream && one->context == other->context && one->thread == other->thread;
}

/* Behind a launch on its stream, whose context need not be the current one. NULL: it cannot be known when it is done.
 */
static struct running *mark(const struct vgpu__graph_need *need, CUcontext context) {
    CUresult result = CUDA_SUCCESS, ignored;
    struct running *mark = calloc(1, sizeof *mark);
    bool other = has_handle(need->stream);
    struct line line = line_of(need->stream, context);
    if (mark == NULL)
        return NULL;
    if (other)
        VGPU_CALL(result, cuStreamGetCtx, need->stream, &context);
    if (result == CUDA_SUCCESS && other)
        VGPU_CALL(result, cuCtxPushCurrent_v2, context);
    if (result != CUDA_SUCCESS) {
        free(mark);
        return NULL;
    }
    *mark = (struct running){.need = *need, .line = line, .context = context};
    VGPU_CALL(result, cuEventCreate, &mark->end, CU_EVENT_DISABLE_TIMING);
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuEventRecord, mark->end, need->stream);
    if (other)
        VGPU_CALL(ignored, cuCtxPopCurrent_v2, &context);
    (void)ignored;
    if (result == CUDA_SUCCESS)
        return mark;
    free(mark);
    return NULL;
}

void vgpu__graph_memory_forget(void) {
    running = NULL;
}

static void drop(struct running **link) {
    CUresult ignored;
    struct running *one = *link;
    *link = one->next;
    if (!one->held)
        VGPU_CALL(ignored, cuEventDestroy_v2, one->end);
    (void)ignored;
    free(one);
}

/* A later launch of the same graph on the same stream is done last. */
static void add(struct running *end) {
    for (struct running **link = &running; *link != NULL;) {
        if ((*link)->need.exec == end->need.exec && is_line(&(*link)->line, &end->line) && (*link)->pool == end->pool)
            drop(link);
        else
            link = &(*link)->next;
    }
    end->next = running;
    __atomic_store_n(&running, end, __ATOMIC_RELEASE);
}

/* What graphs on other streams may have in use. On one stream they follow each other, and so may their memory; a graph
 * waits for itself. */
static uint64_t unfinished_bytes(const struct vgpu__pool *pool, const struct vgpu__graph_need *need,
                                 CUcontext current) {
    uint64_t sum = 0;
    struct vgpu__place place;
    struct line line = line_of(need->stream, current);
    if (running == NULL)
        return 0;
    vgpu__place_enter_context(&place, NULL, true);
    for (struct running **link = &running; *link != NULL;) {
        struct running *one = *link;
        CUresult result = CUDA_ERROR_NOT_READY;
        if (!one->held)
            VGPU_CALL(result, cuEventQuery, one->end);
        if (result == CUDA_SUCCESS) {
            drop(link);
            continue;
        }
        if (one->pool == pool && one->need.exec != need->exec && !is_line(&one->line, &line))
            sum += one->need.bytes;
        link = &one->next;
    }
    vgpu__place_leave(&place);
    return sum;
}

void vgpu__pools_graph_gone(CUgraphExec exec) {
    vgpu__pools_enter();
    for (struct running *one = running; one != NULL; one = one->next)
        if (one->need.exec == exec)
            one->need.exec = NULL;
    vgpu__pools_leave();
}

/* What still runs on it runs beside what follows on the next one of its handle. */
void vgpu__pools_stream_gone(CUstream stream) {
    if (__atomic_load_n(&running, __ATOMIC_ACQUIRE) == NULL || !has_handle(stream))
        return;
    vgpu__pools_enter();
    for (struct running *one = running; one != NULL; one = one->next)
        if (one->line.stream == stream)
            one->line.stream = (CUstream)(void *)&no_stream;
    vgpu__pools_leave();
}

void vgpu__pools_context_ending(CUcontext context) {
    if (__atomic_load_n(&running, __ATOMIC_ACQUIRE) == NULL)
        return;
    vgpu__pools_enter();
    for (struct running *one = running; one != NULL; one = one->next)
        one->held |= one->context == context;
    vgpu__pools_leave();
}

void vgpu__pools_context_ended(CUcontext context, bool ended) {
    if (__atomic_load_n(&running, __ATOMIC_ACQUIRE) == NULL)
        return;
    vgpu__pools_enter();
    for (struct running **link = &running; *link != NULL;) {
        struct running *one = *link;
        bool meant = one->held && one->context == context;
        one->held &= !meant || ended;
        if (meant && ended)
            drop(link); /* its event went with the context */
        else
            link = &one->next;
    }
    vgpu__pools_leave();
}

/* ---- Launching ---- */

/* Reserve for a graph what the pool does not have for it already. Trimming to make room takes of that, too. */
static bool reserve_for_graph(struct vgpu__pool *pool, uint64_t bytes) {
    do {
        uint64_t kept = pool->live_bytes + pool->coming_bytes;
        uint64_t have = pool->charged_bytes > kept ? pool->charged_bytes - kept : 0;
        uint64_t missing = bytes > have ? bytes - have : 0;
        if (vgpu_reserve(pool->device, missing) == VGPU_OK) {
            pool->charged_bytes += missing;
            return true;
        }
    } while (vgpu__pool_shrink_all(pool->device, true));
    return false;
}

/* What others have in use is not for this graph. */
static uint64_t in_use(const struct vgpu__pool *pool, const struct vgpu__graph_need *need, CUcontext current) {
    uint64_t unfinished = unfinished_bytes(pool, need, current), used = need->first ? used_by_graphs(pool->ordinal) : 0;
    return used > unfinished ? used : unfinished;
}

/* The memory of graphs that a need is about. */
static CUresult find_pool(const struct vgpu__graph_need *need, CUdevice current, struct vgpu__pool **pool) {
    CUresult result;
    CUdevice ordinal = need->ordinal >= 0 ? need->ordinal : current;
    struct vgpu_device *device = vgpu__cuda_device(ordinal, &result);
    if (device == NULL)
        return result;
    *pool = vgpu__pool_of_graphs(ordinal, device);
    return *pool != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* A launched graph may use what its device's graphs hold already; it may also need all of its bytes anew. What is held
 * may be trimmed before the driver takes it. */
static CUresult prepare(const struct vgpu__graph_need *need, struct vgpu__pool *pool, CUcontext current) {
    pool->live_bytes = in_use(pool, need, current);
    if (!reserve_for_graph(pool, need->bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    pool->coming_bytes += need->bytes;
    return CUDA_SUCCESS;
}

static void finish(const struct vgpu__graph_need *need, struct vgpu__pool *pool) {
    pool->coming_bytes -= need->bytes;
    if (pool->coming_bytes == 0)
        vgpu__pool_charge_growth(pool, 0);
    else
        vgpu__pool_settle(pool);
}

CUresult vgpu__pools_graph_launch(const struct vgpu__graph_need *needs, uint32_t count, CUresult (*launch)(void *),
                                  void *argument) {
    CUresult result;
    CUcontext context;
    CUdevice ordinal;
    struct vgpu__pool *pools[VGPU_GRAPH_NEEDS];
    struct running *ends[VGPU_GRAPH_NEEDS] = {NULL};
    uint32_t prepared = 0;
    if (vgpu__cuda_current(&context, &result) == NULL)
        return result;
    VGPU_CALL(result, cuCtxGetDevice, &ordinal);
    vgpu__pools_enter();
    for (; result == CUDA_SUCCESS && prepared < count; prepared += result == CUDA_SUCCESS)
        if ((result = find_pool(&needs[prepared], ordinal, &pools[prepared])) == CUDA_SUCCESS)
            result = prepare(&needs[prepared], pools[prepared], context);
    if (result == CUDA_SUCCESS) {
        vgpu__pools_leave();
        result = launch(argument);
        for (uint32_t i = 0; result == CUDA_SUCCESS && i < count; i++)
            ends[i] = mark(&needs[i], context);
        vgpu__pools_enter();
    }
    for (uint32_t i = 0; i < prepared; i++) {
        if (ends[i] != NULL) {
            ends[i]->pool = pools[i];
            add(ends[i]);
        }
        finish(&needs[i], pools[i]);
    }
    vgpu__pools_leave();
    return result;
}

CUresult cuDeviceGraphMemTrim(CUdevice ordinal) {
    CUresult result;
    VGPU_ENTER(cuDeviceGraphMemTrim, ordinal);
    VGPU_CALL(result, cuDeviceGraphMemTrim, ordinal);
    if (result == CUDA_SUCCESS && vgpu__attached()) {
        vgpu__pools_enter();
        struct vgpu__pool *pool = vgpu__pool_find_of_graphs(ordinal);
        if (pool != NULL)
            vgpu__pool_settle(pool);
        vgpu__pools_leave();
    }
    return result;
}
