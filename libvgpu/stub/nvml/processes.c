/* SPDX-License-Identifier: Apache-2.0
 *
 * The processes on a device, with process ids as the caller's pid namespace has them.
 *
 * A card knows a process by the id in its own namespace. For a caller in an outer namespace (the node agent on the
 * host) it is found by going through /proc: NSpid tells a process's id in each of its namespaces, innermost last. What
 * the caller cannot see (processes of other containers) is left out, as the real driver does.
 */
#include "nvml/inside.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct found {
    unsigned pid;
    uint64_t bytes;
    const struct stub_slot *slot;
};

/* ---- Process ids ---- */

static uint64_t namespace_of(const char *process) {
    char path[300];
    struct stat st;
    snprintf(path, sizeof path, "/proc/%s/ns/pid", process);
    return stat(path, &st) == 0 ? st.st_ino : 0;
}

/* The process's id in its innermost namespace. */
static unsigned inner_pid(const char *process) {
    char path[300], line[512];
    snprintf(path, sizeof path, "/proc/%s/status", process);
    FILE *file = fopen(path, "re");
    unsigned pid = 0;
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "NSpid:", 6) != 0)
            continue;
        const char *last = strrchr(line, '\t');
        pid = last ? (unsigned)strtoul(last, NULL, 10) : 0;
        break;
    }
    if (file)
        fclose(file);
    return pid;
}

static unsigned outer_pid(const struct stub_slot *slot) {
    DIR *directory = opendir("/proc");
    unsigned pid = 0;
    struct dirent *entry;
    while (directory && !pid && (entry = readdir(directory))) {
        if (isdigit((unsigned char)*entry->d_name) && namespace_of(entry->d_name) == slot->pid_namespace &&
            inner_pid(entry->d_name) == slot->pid)
            pid = (unsigned)strtoul(entry->d_name, NULL, 10);
    }
    if (directory)
        closedir(directory);
    return pid;
}

/* Living processes with a context that the caller can see. Returns how many. */
static unsigned find_processes(nvmlDevice_t device, struct found *found) {
    const struct stub_card *shared = device->card.shared;
    uint64_t here = namespace_of("self");
    unsigned count = 0;
    if (getenv("VGPU_STUB_NVML_NAMELESS"))
        return 0;
    for (uint32_t i = 0; i < STUB_SLOTS; i++) {
        const struct stub_slot *slot = &shared->slots[i];
        if (LOAD(slot->state) != STUB_SLOT_LIVE || !LOAD_RELAXED(slot->contexts) || !card_slot_lives(&device->card, i))
            continue;
        unsigned pid = slot->pid_namespace == here ? slot->pid : outer_pid(slot);
        uint64_t bytes = card_slot_bytes(&device->card, i) + card_opened_bytes(&device->card, i);
        if (pid)
            found[count++] = (struct found){pid, bytes, slot};
    }
    return count;
}

/* ---- Running processes ---- */

/* How the three versions of a process record are filled. */
static void fill_v1(void *records, unsigned at, const struct found *one) {
    ((nvmlProcessInfo_v1_t *)records)[at] = (nvmlProcessInfo_v1_t){one->pid, one->bytes};
}

static void fill_v2(void *records, unsigned at, const struct found *one) {
    ((nvmlProcessInfo_v2_t *)records)[at] =
        (nvmlProcessInfo_v2_t){one->pid, one->bytes, NVML_NO_INSTANCE, NVML_NO_INSTANCE};
}

static nvmlReturn_t list(nvmlDevice_t device, unsigned *count, void *records,
                         void (*fill)(void *, unsigned, const struct found *)) {
    TRY(check_device(device));
    REQUIRE(count, NVML_ERROR_INVALID_ARGUMENT);
    struct found found[STUB_SLOTS];
    unsigned there = find_processes(device, found);
    unsigned room = records ? *count : 0;
    *count = there;
    REQUIRE(there <= room, NVML_ERROR_INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < there; i++)
        fill(records, i, &found[i]);
    return NVML_SUCCESS;
}

static nvmlReturn_t none(nvmlDevice_t device, unsigned *count) {
    TRY(check_device(device));
    REQUIRE(count, NVML_ERROR_INVALID_ARGUMENT);
    *count = 0;
    return NVML_SUCCESS;
}

#define RUNNING(version, record, fill)                                                                                 \
    EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses##version(nvmlDevice_t device, unsigned *count,            \
                                                                      record *infos) {                                 \
        return list(device, count, infos, fill);                                                                       \
    }                                                                                                                  \
    EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses##version(nvmlDevice_t device, unsigned *count,           \
                                                                       record *infos) {                                \
        (void)infos;                                                                                                   \
        return none(device, count);                                                                                    \
    }                                                                                                                  \
    EXPORT nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses##version(nvmlDevice_t device, unsigned *count,         \
                                                                         record *infos) {                              \
        (void)infos;                                                                                                   \
        return none(device, count);                                                                                    \
    }

RUNNING(, nvmlProcessInfo_v1_t, fill_v1)
RUNNING(_v2, nvmlProcessInfo_v2_t, fill_v2)
RUNNING(_v3, nvmlProcessInfo_t, fill_v2)

EXPORT nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device, nvmlProcessDetailList_v1_t *details) {
    TRY(check_device(device));
    REQUIRE(details, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(details->version == NVML_STRUCT_VERSION(nvmlProcessDetailList_v1_t, 1),
            NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    if (details->mode != 0)
        return none(device, &details->numProcArrayEntries);
    struct found found[STUB_SLOTS];
    unsigned there = find_processes(device, found);
    unsigned room = details->procArray ? details->numProcArrayEntries : 0;
    details->numProcArrayEntries = there;
    REQUIRE(there <= room, NVML_ERROR_INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < there; i++)
        details->procArray[i] = (nvmlProcessDetail_v1_t){found[i].pid, found[i].bytes, NVML_NO_INSTANCE,
                                                         NVML_NO_INSTANCE, NVML_VALUE_NOT_AVAILABLE_ULL};
    return NVML_SUCCESS;
}

/* ---- Load of processes ---- */

#define TENTH_NS 100000000u

static uint64_t wall_us(void) {
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    return (uint64_t)wall.tv_sec * 1000000u + (uint64_t)wall.tv_nsec / 1000u;
}

/* The whole tenths of a second since a time stamp, a second at most: [first, end) */
struct span {
    uint64_t first, end;
    uint64_t end_us; /* as a time stamp */
};

static struct span span_since(unsigned long long last_seen_us) {
    uint64_t now = now_ns(), now_us = wall_us();
    struct span span = {.end = now / TENTH_NS};
    span.end_us = now_us - now % TENTH_NS / 1000;
    uint64_t tenths = span.end_us > last_seen_us ? (span.end_us - last_seen_us + 50000) / 100000 : 0;
    span.first = span.end - (tenths < 10 ? tenths : 10);
    return span;
}

/* On average over the span, in whole percent. */
static unsigned percent_in(const struct stub_slot *slot, const struct span *span) {
    uint64_t busy = 0;
    for (uint64_t tenth = span->first; tenth < span->end; tenth++) {
        const struct stub_usage *bucket = &slot->usage[tenth % STUB_SLOT_USAGE];
        if (LOAD_RELAXED(bucket->tenth) == tenth)
            busy += LOAD_RELAXED(bucket->busy_ns);
    }
    uint64_t length = (span->end - span->first) * TENTH_NS;
    return length > 0 ? (unsigned)((busy * 100 + length / 2) / length) : 0;
}

/* Processes that used the engine in the span. */
static unsigned find_busy(nvmlDevice_t device, struct found *found, const struct span *span) {
    unsigned count = span->first < span->end ? find_processes(device, found) : 0, busy = 0;
    for (unsigned i = 0; i < count; i++)
        if (percent_in(found[i].slot, span))
            found[busy++] = found[i];
    return busy;
}

EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                                    unsigned *count, unsigned long long last_seen) {
    TRY(check_device(device));
    REQUIRE(count, NVML_ERROR_INVALID_ARGUMENT);
    struct found found[STUB_SLOTS];
    struct span span = span_since(last_seen);
    unsigned there = find_busy(device, found, &span);
    unsigned room = samples ? *count : 0;
    *count = there;
    REQUIRE(there > 0, NVML_ERROR_NOT_FOUND);
    REQUIRE(there <= room, NVML_ERROR_INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < there; i++) {
        unsigned percent = percent_in(found[i].slot, &span);
        samples[i] = (nvmlProcessUtilizationSample_t){found[i].pid, span.end_us, percent, percent / 2, 0, 0};
    }
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device,
                                                          nvmlProcessesUtilizationInfo_v1_t *info) {
    TRY(check_device(device));
    REQUIRE(info, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(info->version == NVML_STRUCT_VERSION(nvmlProcessesUtilizationInfo_v1_t, 1),
            NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    struct found found[STUB_SLOTS];
    struct span span = span_since(info->lastSeenTimeStamp);
    unsigned there = find_busy(device, found, &span);
    unsigned room = info->procUtilArray ? info->processSamplesCount : 0;
    info->processSamplesCount = there;
    REQUIRE(there > 0, NVML_ERROR_NOT_FOUND);
    REQUIRE(there <= room, NVML_ERROR_INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < there; i++) {
        unsigned percent = percent_in(found[i].slot, &span);
        info->procUtilArray[i] = (nvmlProcessUtilizationInfo_v1_t){
            .timeStamp = span.end_us, .pid = found[i].pid, .smUtil = percent, .memUtil = percent / 2};
    }
    return NVML_SUCCESS;
}
