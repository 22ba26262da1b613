/* SPDX-License-Identifier: Apache-2.0
 *
 * Events. They end with their context, or when they are destroyed; their handle comes again when no work refers to it.
 */
#include "work.h"

static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER; /* contexts' lists of them */

static bool lives(CUevent event) {
    return handle_lives(event) && !__atomic_load_n(&event->gone, __ATOMIC_RELAXED);
}

static void event_reference(CUevent event) {
    __atomic_fetch_add(&event->references, 1, __ATOMIC_RELAXED);
}

void event_release(CUevent event) {
    if (__atomic_sub_fetch(&event->references, 1, __ATOMIC_ACQ_REL) == 0)
        handle_give(event);
}

static void begin(CUevent event) {
    pthread_mutex_lock(&events_lock);
    event->previous = &event->context->events;
    event->next = event->context->events;
    if (event->next)
        event->next->previous = &event->next;
    event->context->events = event;
    pthread_mutex_unlock(&events_lock);
}

/* False: somebody else has ended it. */
static bool end(CUevent event) {
    pthread_mutex_lock(&events_lock);
    bool here = !event->gone;
    if (here) {
        *event->previous = event->next;
        if (event->next)
            event->next->previous = event->previous;
        __atomic_store_n(&event->gone, true, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&events_lock);
    return here;
}

void events_end(CUcontext context) {
    for (;;) {
        pthread_mutex_lock(&events_lock);
        CUevent event = context->events;
        pthread_mutex_unlock(&events_lock);
        if (!event)
            return;
        if (end(event))
            event_release(event);
    }
}

void events_forget_all(void) {
    pthread_mutex_init(&events_lock, NULL); /* a thread of the parent may have held it */
}

CUresult stub_cuEventCreate(CUevent *out, unsigned flags) {
    CUcontext context;
    TRY(current_context(&context));
    REQUIRE(out && flags <= 7, CUDA_ERROR_INVALID_VALUE);
    CUevent event = handle_take(HANDLE_EVENT, sizeof *event);
    REQUIRE(event, CUDA_ERROR_OUT_OF_MEMORY);
    event->context = context;
    event->flags = flags;
    event->references = 1;
    begin(event);
    *out = event;
    return CUDA_SUCCESS;
}

CUresult stub_cuEventDestroy_v2(CUevent event) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(lives(event) && end(event), CUDA_ERROR_INVALID_HANDLE);
    event_release(event);
    return CUDA_SUCCESS;
}

CUresult stub_cuEventDestroy(CUevent event) {
    return stub_cuEventDestroy_v2(event);
}

CUresult stub_cuEventRecordWithFlags(CUevent event, CUstream handle, unsigned flags) {
    CUstream stream;
    REQUIRE(lives(event), CUDA_ERROR_INVALID_HANDLE);
    TRY(resolve_stream(handle, &stream));
    REQUIRE(event->context->device == stream->context->device, CUDA_ERROR_INVALID_HANDLE);
    if (CAPTURING(stream))
        return capture_record(stream, event, flags);
    event->capture = NULL;
    event_reference(event);
    uint64_t generation = __atomic_add_fetch(&event->recorded, 1, __ATOMIC_ACQ_REL);
    queue_submit(stream, (struct op){.kind = OP_RECORD, .event = {event, generation}});
    return CUDA_SUCCESS;
}

CUresult stub_cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
    CUstream stream;
    REQUIRE(lives(event), CUDA_ERROR_INVALID_HANDLE);
    TRY(resolve_stream(handle, &stream));
    if (CAPTURING(stream) || event->capture)
        return capture_wait(stream, event, flags);
    event_reference(event);
    queue_submit(stream, (struct op){.kind = OP_WAIT, .event = {event, event->recorded}});
    return CUDA_SUCCESS;
}

CUresult stub_cuEventRecord(CUevent event, CUstream handle) {
    return stub_cuEventRecordWithFlags(event, handle, 0);
}

CUresult stub_cuEventQuery(CUevent event) {
    REQUIRE(driver.ready, CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(lives(event), CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(!event->capture, CUDA_ERROR_CAPTURED_EVENT);
    TRY(capture_forbids());
    bool done =
        __atomic_load_n(&event->completed, __ATOMIC_ACQUIRE) >= __atomic_load_n(&event->recorded, __ATOMIC_ACQUIRE);
    done = done && event->time_ns <= now_ns(); /* not before what the link has to do */
    return done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult stub_cuEventSynchronize(CUevent event) {
    CUresult result = stub_cuEventQuery(event);
    if (result == CUDA_ERROR_NOT_READY) {
        event_reference(event); /* whoever destroys it meanwhile */
        queue_wait_event(event, event->recorded);
        event_release(event);
        result = CUDA_SUCCESS;
    }
    if (result == CUDA_SUCCESS)
        pools_settle(event->context->device);
    return result;
}

CUresult stub_cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    REQUIRE(milliseconds, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(lives(start) && lives(end), CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(!((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING), CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(start->recorded && end->recorded, CUDA_ERROR_INVALID_HANDLE);
    TRY(stub_cuEventQuery(start));
    TRY(stub_cuEventQuery(end));
    *milliseconds = (float)((double)(int64_t)(end->time_ns - start->time_ns) / 1e6);
    return CUDA_SUCCESS;
}

CUresult stub_cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    return stub_cuEventElapsedTime_v2(milliseconds, start, end);
}
