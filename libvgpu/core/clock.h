/* SPDX-License-Identifier: Apache-2.0
 *
 * Monotonic time in nanoseconds, and sleeping until a moment of it. Keeps errno.
 *
 * The bucket of a share fills with the time that passes, and all processes of the share and the node agent have to mean
 * the same by that. So the C library is asked itself, once the front-end has said where it is: a library like
 * libfaketime, preloaded for the application's sake, would make GPU time as fast as it makes the clock.
 */
#ifndef VGPU_CLOCK_H
#define VGPU_CLOCK_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

typedef int (*vgpu_gettime_function)(clockid_t clock, struct timespec *now);
typedef int (*vgpu_sleep_function)(clockid_t clock, int flags, const struct timespec *moment, struct timespec *left);

/* The C library's own clock_gettime and clock_nanosleep, as the front-end found them; NULL: whoever has these names. */
extern vgpu_gettime_function vgpu__gettime;
extern vgpu_sleep_function vgpu__nanosleep;

static inline uint64_t vgpu_now_ns(void) {
    struct timespec now;
    vgpu_gettime_function gettime = __atomic_load_n(&vgpu__gettime, __ATOMIC_RELAXED);
    (gettime != NULL ? gettime : clock_gettime)(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Sleep until CLOCK_MONOTONIC has reached `moment_ns`; signals do not shorten it. */
static inline void vgpu_sleep_until(uint64_t moment_ns) {
    int saved = errno;
    struct timespec moment = {.tv_sec = (time_t)(moment_ns / 1000000000u), .tv_nsec = (long)(moment_ns % 1000000000u)};
    vgpu_sleep_function nanosleep = __atomic_load_n(&vgpu__nanosleep, __ATOMIC_RELAXED);
    while ((nanosleep != NULL ? nanosleep : clock_nanosleep)(CLOCK_MONOTONIC, TIMER_ABSTIME, &moment, NULL) == EINTR)
        continue;
    errno = saved;
}

static inline void vgpu_sleep_ns(uint64_t duration_ns) {
    vgpu_sleep_until(vgpu_now_ns() + duration_ns);
}

#endif
