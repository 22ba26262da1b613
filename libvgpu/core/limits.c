/* SPDX-License-Identifier: Apache-2.0 */
#include "core/limits.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/origin.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int expect(const char *path, const char *field, uint64_t found, uint64_t low, uint64_t high) {
    if (low <= found && found <= high)
        return 0;
    if (low == high)
        vgpu_complain("%s: %s: found %#llx, expected %#llx; the GPU is refused", path, field, (unsigned long long)found,
                      (unsigned long long)low);
    else
        vgpu_complain("%s: %s: found %llu, expected %llu to %llu; the GPU is refused", path, field,
                      (unsigned long long)found, (unsigned long long)low, (unsigned long long)high);
    return -1;
}

static int expect_text(const char *path, const char *field, const char *text, size_t size) {
    if (text[0] != '\0' && memchr(text, '\0', size) != NULL)
        return 0;
    vgpu_complain("%s: %s: found no text, expected text of 1 to %zu bytes; the GPU is refused", path, field, size - 1);
    return -1;
}

/* Check a consistent copy of the file; 0, or -1 with one line on stderr that names `path`. */
static int check(const struct vgpu_limits *limits, const char *path) {
    if (expect(path, "magic", limits->magic, VGPU_LIMITS_MAGIC, VGPU_LIMITS_MAGIC) ||
        expect(path, "version", limits->version, VGPU_VERSION, VGPU_VERSION) ||
        expect(path, "size", limits->size, VGPU_LIMITS_MIN_BYTES, VGPU_LIMITS_FILE_BYTES) ||
        expect(path, "memory_bytes", limits->memory_bytes, 1, UINT64_C(1) << 62) ||
        expect(path, "cores_percent", limits->cores_percent, 0, 100) ||
        expect(path, "ceiling_percent", limits->ceiling_percent, 1, 100) ||
        expect(path, "granted_percent", limits->granted_percent, 0, 100) ||
        expect(path, "policy", limits->policy, VGPU_POLICY_FIXED, VGPU_POLICY_BURST) ||
        expect_text(path, "device_uuid", limits->device_uuid, sizeof limits->device_uuid) ||
        expect_text(path, "share", limits->share, sizeof limits->share))
        return -1;
    return 0;
}

const struct vgpu_limits *vgpu_limits_map(const char *path) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        vgpu_complain("%s: found %s, expected a readable limits file; the GPU is refused", path, strerror(errno));
        return NULL;
    }
    if (vgpu_origin_check(descriptor, path, true) != 0) {
        close(descriptor);
        return NULL;
    }
    const struct vgpu_limits *limits = MAP_FAILED;
    long long size = lseek(descriptor, 0, SEEK_END); /* fstat is tied to a version of the C library */
    if (size == VGPU_LIMITS_FILE_BYTES)
        limits = mmap(NULL, VGPU_LIMITS_FILE_BYTES, PROT_READ, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (limits == MAP_FAILED) {
        vgpu_complain("%s: found %lld bytes, expected a file of %d bytes; the GPU is refused", path, size,
                      VGPU_LIMITS_FILE_BYTES);
        return NULL;
    }
    struct vgpu_limits copy;
    if (vgpu_limits_copy(limits, &copy) != 0)
        vgpu_complain("%s: sequence: found %u, expected an even number (a writer died); the GPU is refused", path,
                      __atomic_load_n(&limits->sequence, __ATOMIC_RELAXED));
    else if (check(&copy, path) == 0)
        return limits;
    munmap((void *)limits, VGPU_LIMITS_FILE_BYTES);
    return NULL;
}

int vgpu_limits_copy(const struct vgpu_limits *limits, struct vgpu_limits *copy) {
    for (int attempt = 0; attempt < 1000; attempt++) {
        uint32_t before = __atomic_load_n(&limits->sequence, __ATOMIC_ACQUIRE);
        if (before % 2 == 0) {
            memcpy(copy, limits, sizeof *copy);
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            if (__atomic_load_n(&limits->sequence, __ATOMIC_RELAXED) == before)
                return 0;
        }
        vgpu_sleep_ns(100 * 1000);
    }
    return -1;
}

/* What the agent said counts for this long: it may be dead, and neighbours may have come and gone. */
static bool is_late(const struct vgpu_limits *limits, uint64_t now_ns) {
    uint64_t said_at = __atomic_load_n(&limits->steered_at_ns, __ATOMIC_RELAXED);
    return now_ns > said_at && now_ns - said_at > UINT64_C(10) * 1000 * 1000 * 1000;
}

uint32_t vgpu_limits_rate_percent(const struct vgpu_limits *limits) {
    uint32_t ceiling = __atomic_load_n(&limits->ceiling_percent, __ATOMIC_RELAXED);
    uint32_t granted = __atomic_load_n(&limits->granted_percent, __ATOMIC_RELAXED);
    if (limits->policy == VGPU_POLICY_BURST && granted != 0 &&
        __atomic_load_n(&limits->steered_at_ns, __ATOMIC_RELAXED) != 0 && is_late(limits, vgpu_now_ns()))
        granted = limits->cores_percent > 0 ? limits->cores_percent : 1;
    uint32_t rate = granted != 0 && granted < ceiling ? granted : ceiling;
    return rate < 1 ? 1 : rate > 100 ? 100 : rate;
}

uint32_t vgpu_limits_charge_permille(const struct vgpu_limits *limits, uint64_t now_ns) {
    enum { LEAST = 20, MOST = 20000 };
    uint32_t permille = __atomic_load_n(&limits->charge_permille, __ATOMIC_RELAXED);
    return is_late(limits, now_ns) || permille < LEAST || permille > MOST ? 0 : permille;
}
