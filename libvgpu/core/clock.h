/* SPDX-License-Identifier: Apache-2.0
 *
 * Monotonic time in nanoseconds, and sleeping until a moment of it. Keeps errno.
 */
#ifndef VGPU_CLOCK_H
#define VGPU_CLOCK_H

#include <errno.h>
#include <stdint.h>
#include <time.h>

static inline uint64_t vgpu_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Sleep until CLOCK_MONOTONIC has reached `moment_ns`; signals do not shorten it. */
static inline void vgpu_sleep_until(uint64_t moment_ns) {
    int saved = errno;
    struct timespec moment = {.tv_sec = (time_t)(moment_ns / 1000000000u), .tv_nsec = (long)(moment_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &moment, NULL) == EINTR)
        continue;
    errno = saved;
}

static inline void vgpu_sleep_ns(uint64_t duration_ns) {
    vgpu_sleep_until(vgpu_now_ns() + duration_ns);
}

#endif
