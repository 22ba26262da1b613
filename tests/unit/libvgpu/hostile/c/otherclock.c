/* SPDX-License-Identifier: Apache-2.0
 *
 * A preloaded library with a clock of its own, like libfaketime: for libvgpu a second lasts a tenth of one. The stub
 * keeps the machine's clock, as a GPU does.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int is_ours(void *caller) {
    Dl_info info;
    return dladdr(caller, &info) != 0 && strstr(info.dli_fname, "libvgpu") != NULL;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int64_t began_ns;
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result != 0 || !is_ours(__builtin_return_address(0)))
        return result;
    int64_t now_ns = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec;
    began_ns = began_ns != 0 ? began_ns : now_ns;
    now_ns = began_ns + 10 * (now_ns - began_ns);
    *now = (struct timespec){.tv_sec = now_ns / 1000000000, .tv_nsec = now_ns % 1000000000};
    return 0;
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *moment, struct timespec *left) {
    return is_ours(__builtin_return_address(0)) ? 0 : (int)syscall(SYS_clock_nanosleep, clock, flags, moment, left);
}
