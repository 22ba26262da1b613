/* SPDX-License-Identifier: Apache-2.0
 *
 * What streams have to do, and the executor that does it: one thread per device and process.
 *
 * A stream is a ring of ops that run in order. Streams of a context run beside each other, but for the legacy default
 * stream: it waits for what was submitted to the blocking streams before it, and they for it. The card's engine runs
 * one kernel at a time, so "beside each other" means that the executor takes the next op that may run from any stream.
 *
 * Submitting is a lock, a copy and a look at the clock; it makes a system call only when the executor sleeps. Work that
 * takes no time, on a device with nothing to do, is done on the spot.
 */
#define _GNU_SOURCE
#include "work.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

struct executor {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* something was completed */
    struct device *device;
    CUstream active; /* streams with work, a ring in the order in which they are looked at */
    uint64_t sequence;
    uint64_t pending;  /* ops submitted and not completed */
    unsigned watchers; /* threads that wait for changed */
    uint32_t wake;     /* futex: the executor sleeps on it */
    bool sleeping;
    bool threaded; /* false: no thread could be started, and whoever submits does the work */
    bool working;
};

static struct op *head_of(CUstream stream) {
    return &stream->ring[stream->completed % QUEUE_DEPTH];
}

/* ---- Streams with work ---- */

static void activate(struct executor *executor, CUstream stream) {
    stream->active = true;
    if (!executor->active) {
        executor->active = stream->next_active = stream->previous_active = stream;
        return;
    }
    CUstream first = executor->active;
    stream->next_active = first;
    stream->previous_active = first->previous_active;
    first->previous_active->next_active = stream;
    first->previous_active = stream;
}

static void deactivate(struct executor *executor, CUstream stream) {
    stream->active = false;
    if (stream->next_active == stream) {
        executor->active = NULL;
        return;
    }
    stream->previous_active->next_active = stream->next_active;
    stream->next_active->previous_active = stream->previous_active;
    if (executor->active == stream)
        executor->active = stream->next_active;
}

/* Does another stream of the context hold this op back? */
static bool held_back(struct executor *executor, CUstream stream) {
    if (stream->flags & CU_STREAM_NON_BLOCKING)
        return false;
    CUstream legacy = stream->context->legacy;
    uint64_t sequence = head_of(stream)->sequence;
    if (stream != legacy)
        return legacy->active && head_of(legacy)->sequence < sequence;
    CUstream other = executor->active;
    do {
        if (other != stream && other->context == stream->context && !(other->flags & CU_STREAM_NON_BLOCKING) &&
            head_of(other)->sequence < sequence)
            return true;
        other = other->next_active;
    } while (other != executor->active);
    return false;
}

/* The next stream whose first op may run, NULL if none. Under the lock. */
static CUstream next_ready(struct executor *executor) {
    CUstream stream = executor->active;
    if (!stream)
        return NULL;
    do {
        struct op *op = head_of(stream);
        bool waits = op->kind == OP_WAIT && op->event.event->completed < op->event.generation;
        if (!waits && !held_back(executor, stream)) {
            executor->active = stream->next_active; /* the others come first next time */
            return stream;
        }
        stream = stream->next_active;
    } while (stream != executor->active);
    return NULL;
}

/* ---- Doing the work ---- */

static void complete(struct executor *executor, CUstream stream, const struct op *op, uint64_t time_ns) {
    stream->time_ns = time_ns;
    if (op->kind == OP_RECORD || op->kind == OP_WAIT) {
        CUevent event = op->event.event;
        if (op->kind == OP_RECORD && op->event.generation > event->completed) {
            event->time_ns = time_ns;
            __atomic_store_n(&event->completed, op->event.generation, __ATOMIC_RELEASE);
        } else if (op->kind == OP_WAIT && event->time_ns > time_ns) {
            stream->time_ns = event->time_ns;
        }
        event_release(event);
    }
    stream->completed++;
    executor->pending--;
    if (stream->completed == stream->submitted && stream->active)
        deactivate(executor, stream);
    if (executor->watchers)
        pthread_cond_broadcast(&executor->changed);
}

/* Runs one op outside the lock. Returns when it ended, in the engine's time. */
static uint64_t perform(struct executor *executor, const struct op *op, uint64_t ready_ns) {
    switch (op->kind) {
    case OP_KERNEL:
        return op->duration_ns ? engine_run(executor->device, ready_ns, op->duration_ns) : ready_ns;
    case OP_HOST:
        engine_release(executor->device); /* the application may take its time */
        op->run.function(op->run.data);
        return now_ns();
    case OP_RUN:
        op->run.function(op->run.data);
        return op->duration_ns ? engine_run(executor->device, ready_ns, op->duration_ns) : ready_ns;
    case OP_LINK: /* beside the engine: nobody waits for it but who waits for the stream */
        op->run.function(op->run.data);
        return ready_ns + op->duration_ns;
    default:
        return ready_ns;
    }
}

/* Does one op. False if there is none that may run. Called and left with the lock held. */
static bool step(struct executor *executor) {
    CUstream stream = next_ready(executor);
    if (!stream)
        return false;
    struct op op = *head_of(stream);
    uint64_t ready_ns = stream->time_ns > op.submitted_ns ? stream->time_ns : op.submitted_ns;
    pthread_mutex_unlock(&executor->lock);
    uint64_t time_ns = perform(executor, &op, ready_ns);
    pthread_mutex_lock(&executor->lock);
    complete(executor, stream, &op, time_ns);
    return true;
}

static void *executor_main(void *argument) {
    struct executor *executor = argument;
    prctl(PR_SET_NAME, "cuda-stub");
    prctl(PR_SET_TIMERSLACK, 1ul); /* wake when the kernel ends, not 50 us later */
    pthread_mutex_lock(&executor->lock);
    for (;;) {
        if (step(executor))
            continue;
        uint32_t wake = executor->wake;
        executor->sleeping = true;
        pthread_mutex_unlock(&executor->lock);
        engine_release(executor->device);
        futex_wait_until(&executor->wake, wake, 0);
        pthread_mutex_lock(&executor->lock);
        executor->sleeping = false;
    }
    return NULL;
}

/* Without a thread of its own, the work is done by whoever submits it or waits for it. Under the lock. */
static void work_here(struct executor *executor) {
    if (executor->threaded || executor->working)
        return;
    executor->working = true;
    while (step(executor))
        continue;
    engine_release(executor->device);
    executor->working = false;
}

static void wake_executor(struct executor *executor) {
    if (!executor->threaded) {
        work_here(executor);
    } else if (executor->sleeping) {
        executor->sleeping = false;
        __atomic_fetch_add(&executor->wake, 1, __ATOMIC_RELEASE);
        futex_wake(&executor->wake, 1);
    }
}

CUresult executor_start(struct device *device) {
    if (device->executor)
        return CUDA_SUCCESS;
    struct executor *executor = calloc(1, sizeof *executor);
    REQUIRE(executor, CUDA_ERROR_OUT_OF_MEMORY);
    executor->device = device;
    pthread_mutex_init(&executor->lock, NULL);
    pthread_cond_init(&executor->changed, NULL);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the application's signals are for its own threads */
    pthread_t thread;
    executor->threaded = true;
    if (pthread_create(&thread, &attributes, executor_main, executor) != 0)
        executor->threaded = false;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    device->executor = executor;
    return CUDA_SUCCESS;
}

/* In a fork's child: the thread is not there, its lock may be held. */
void executor_forget(struct device *device) {
    device->executor = NULL;
}

/* ---- Submitting and waiting ---- */

static struct executor *executor_of(CUstream stream) {
    return stream->context->device->executor;
}

/* Waits for changed, having told the executor that somebody does. Under the lock. */
static void watch(struct executor *executor) {
    if (!executor->threaded && !executor->working) {
        work_here(executor);
        return;
    }
    executor->watchers++;
    pthread_cond_wait(&executor->changed, &executor->lock);
    executor->watchers--;
}

void queue_submit(CUstream stream, struct op op) {
    struct executor *executor = executor_of(stream);
    op.submitted_ns = now_ns();
    pthread_mutex_lock(&executor->lock);
    if (!stream->ring) {
        stream->ring = calloc(QUEUE_DEPTH, sizeof *stream->ring);
        if (!stream->ring)
            abort(); /* a test machine without 50 KiB */
    }
    while (stream->submitted - stream->completed == QUEUE_DEPTH)
        watch(executor);
    bool instant = op.kind == OP_RECORD || op.kind == OP_WAIT || op.kind == OP_LINK ||
                   ((op.kind == OP_KERNEL || op.kind == OP_RUN) && op.duration_ns == 0);
    if (instant && executor->pending == 0 && !(op.kind == OP_WAIT && op.event.event->completed < op.event.generation)) {
        uint64_t time_ns = stream->time_ns > op.submitted_ns ? stream->time_ns : op.submitted_ns;
        executor->pending++;
        stream->submitted++;
        if (op.kind == OP_RUN || op.kind == OP_LINK)
            op.run.function(op.run.data);
        complete(executor, stream, &op, op.kind == OP_LINK ? time_ns + op.duration_ns : time_ns);
        pthread_mutex_unlock(&executor->lock);
        return;
    }
    op.sequence = ++executor->sequence;
    stream->ring[stream->submitted % QUEUE_DEPTH] = op;
    stream->submitted++;
    executor->pending++;
    if (!stream->active)
        activate(executor, stream);
    wake_executor(executor);
    pthread_mutex_unlock(&executor->lock);
}

/* Work on the link ends when its time is over, and nobody has to do anything for it. */
static void sleep_until(uint64_t time_ns) {
    uint32_t never = 0;
    while (now_ns() < time_ns)
        futex_wait_until(&never, 0, time_ns);
}

static uint64_t latest(uint64_t time_ns, const struct CUstream_st *stream) {
    return stream->time_ns > time_ns ? stream->time_ns : time_ns;
}

/* Is there work of it that was submitted up to here? Streams come and go, and come again, while one waits. */
static bool has_work(CUstream stream, uint64_t up_to) {
    return stream->completed < stream->submitted && head_of(stream)->sequence <= up_to;
}

static bool any_has_work(CUcontext context, bool blocking, uint64_t up_to) {
    for (CUstream stream = context->streams; stream; stream = stream->next)
        if (!(blocking && stream->flags & CU_STREAM_NON_BLOCKING) && has_work(stream, up_to))
            return true;
    return false;
}

static uint64_t latest_of(CUcontext context, bool blocking) {
    uint64_t time_ns = 0;
    for (CUstream stream = context->streams; stream; stream = stream->next)
        if (!(blocking && stream->flags & CU_STREAM_NON_BLOCKING))
            time_ns = latest(time_ns, stream);
    return time_ns;
}

/* The legacy stream's work is done when that of the blocking streams before it is, too. */
void queue_wait_stream(CUstream stream) {
    struct executor *executor = executor_of(stream);
    uint64_t turn = handle_turn(stream);
    pthread_mutex_lock(&executor->lock);
    uint64_t up_to = executor->sequence, until = 0;
    while (handle_turn(stream) == turn &&
           (has_work(stream, up_to) || (stream->legacy && any_has_work(stream->context, true, up_to))))
        watch(executor);
    if (handle_turn(stream) == turn)
        until = latest(stream->legacy ? latest_of(stream->context, true) : 0, stream);
    pthread_mutex_unlock(&executor->lock);
    sleep_until(until);
}

void queue_wait_context(CUcontext context) {
    struct executor *executor = context->device->executor;
    pthread_mutex_lock(&executor->lock);
    uint64_t up_to = executor->sequence;
    while (any_has_work(context, false, up_to))
        watch(executor);
    uint64_t until = latest_of(context, false);
    pthread_mutex_unlock(&executor->lock);
    sleep_until(until);
}

void queue_wait_event(CUevent event, uint64_t generation) {
    struct executor *executor = event->context->device->executor;
    pthread_mutex_lock(&executor->lock);
    while (event->completed < generation)
        watch(executor);
    uint64_t until = event->time_ns;
    pthread_mutex_unlock(&executor->lock);
    sleep_until(until);
}

bool queue_stream_idle(CUstream stream) {
    struct executor *executor = executor_of(stream);
    pthread_mutex_lock(&executor->lock);
    bool idle = stream->completed == stream->submitted;
    uint64_t until = stream->time_ns;
    for (CUstream other = stream->context->streams; idle && stream->legacy && other; other = other->next) {
        if (other->flags & CU_STREAM_NON_BLOCKING)
            continue;
        idle = other->completed == other->submitted;
        until = latest(until, other);
    }
    pthread_mutex_unlock(&executor->lock);
    return idle && until <= now_ns();
}

/* ---- Streams as objects ---- */

void queue_hold(CUcontext context) {
    pthread_mutex_lock(&context->device->executor->lock);
}

void queue_let_go(CUcontext context) {
    pthread_mutex_unlock(&context->device->executor->lock);
}

CUstream queue_stream_make(CUcontext context, unsigned flags, int priority) {
    static unsigned long long last_id;
    CUstream stream = handle_take(HANDLE_STREAM, sizeof *stream);
    if (!stream)
        return NULL;
    stream->context = context;
    stream->flags = flags;
    stream->priority = priority;
    stream->id = __atomic_add_fetch(&last_id, 1, __ATOMIC_RELAXED);
    struct executor *executor = context->device->executor;
    pthread_mutex_lock(&executor->lock);
    stream->next = context->streams;
    context->streams = stream;
    pthread_mutex_unlock(&executor->lock);
    return stream;
}

void queue_stream_free(CUstream stream) {
    struct executor *executor = executor_of(stream);
    pthread_mutex_lock(&executor->lock);
    while (stream->completed < stream->submitted)
        watch(executor);
    for (CUstream *at = &stream->context->streams; *at; at = &(*at)->next) {
        if (*at == stream) {
            *at = stream->next;
            break;
        }
    }
    capture_drop(stream);
    free(stream->ring);
    stream->ring = NULL;
    pthread_mutex_unlock(&executor->lock);
    handle_give(stream);
}
