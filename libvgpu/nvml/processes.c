/* SPDX-License-Identifier: Apache-2.0
 *
 * Process lists of NVML: the share's own processes, as the books have them. The driver's lists would name the
 * neighbours', and with process ids of another namespace. Only processes of the asker's pid namespace are told: others
 * have no id here.
 */
#include "core/books.h"
#include "core/identity.h"
#include "nvml/view.h"

#include <stddef.h>

struct process {
    unsigned int pid;
    uint64_t bytes;
};

enum { MOST = VGPU_SLOTS };

/* Processes of the share, each once, though it may have a slot in several shares of the device. */
static unsigned int list(struct vgpu_device *device, struct process *processes, unsigned int most) {
    uint64_t here = vgpu_pid_namespace();
    unsigned int count = 0;
    for (uint32_t s = 0; s < device->count; s++) {
        vgpu_books_reap(device->shares[s]->books_path, device->shares[s]->books);
        for (uint32_t i = 0; i < VGPU_SLOTS; i++) {
            const struct vgpu_slot *slot = &device->shares[s]->books->slots[i];
            uint64_t bytes = __atomic_load_n(&slot->reserved_bytes, __ATOMIC_RELAXED);
            unsigned int pid = __atomic_load_n(&slot->pid, __ATOMIC_RELAXED), known = 0;
            if (pid == 0 || slot->pid_namespace != here || (bytes == 0 && slot->launches == 0))
                continue;
            while (known < count && processes[known].pid != pid)
                known++;
            if (known == most)
                return count;
            if (known == count)
                processes[count++] = (struct process){.pid = pid};
            processes[known].bytes += bytes;
        }
    }
    return count;
}

/* The contract of the running-process functions: *count is the room on the way in, the number on the way out; too
 * little room is NVML_ERROR_INSUFFICIENT_SIZE, and no room is how to ask for the number. */
#define FILL(handle, count, infos, assign)                                                                             \
    do {                                                                                                               \
        struct process processes[MOST];                                                                                \
        nvmlReturn_t result;                                                                                           \
        struct vgpu_device *device = vgpu__nvml_device(handle, &result);                                               \
        if (device == NULL)                                                                                            \
            return result;                                                                                             \
        if ((count) == NULL || (*(count) > 0 && (infos) == NULL))                                                      \
            return NVML_ERROR_INVALID_ARGUMENT;                                                                        \
        unsigned int found = list(device, processes, MOST), room = *(count);                                           \
        *(count) = found;                                                                                              \
        if (found > room)                                                                                              \
            return NVML_ERROR_INSUFFICIENT_SIZE;                                                                       \
        for (unsigned int i = 0; i < found; i++)                                                                       \
            (infos)[i] = assign;                                                                                       \
        return NVML_SUCCESS;                                                                                           \
    } while (0)

#define INFO_V1 ((nvmlProcessInfo_v1_t){.pid = processes[i].pid, .usedGpuMemory = processes[i].bytes})
#define INFO_V2                                                                                                        \
    ((nvmlProcessInfo_v2_t){.pid = processes[i].pid,                                                                   \
                            .usedGpuMemory = processes[i].bytes,                                                       \
                            .gpuInstanceId = NVML_NO_INSTANCE,                                                         \
                            .computeInstanceId = NVML_NO_INSTANCE})

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t handle, unsigned int *count,
                                                  nvmlProcessInfo_v1_t *infos) {
    FILL(handle, count, infos, INFO_V1);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t handle, unsigned int *count,
                                                     nvmlProcessInfo_v2_t *infos) {
    FILL(handle, count, infos, INFO_V2);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t handle, unsigned int *count,
                                                     nvmlProcessInfo_t *infos) {
    FILL(handle, count, infos, INFO_V2);
}

/* Graphics and MPS clients: what the library counts is compute. */
static nvmlReturn_t none(nvmlDevice_t handle, unsigned int *count) {
    nvmlReturn_t result;
    if (vgpu__nvml_device(handle, &result) == NULL)
        return result;
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

#define NONE(symbol, type)                                                                                             \
    nvmlReturn_t symbol(nvmlDevice_t handle, unsigned int *count, type *infos) {                                       \
        (void)infos;                                                                                                   \
        return none(handle, count);                                                                                    \
    }

NONE(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t)
NONE(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t)
NONE(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_t)
NONE(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t)
NONE(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t)
NONE(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_t)

nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t handle, nvmlProcessDetailList_v1_t *details) {
    nvmlReturn_t result;
    struct process processes[MOST];
    struct vgpu_device *device = vgpu__nvml_device(handle, &result);
    if (device == NULL)
        return result;
    if (details == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned int found = details->mode == 0 ? list(device, processes, MOST) : 0, room = details->numProcArrayEntries;
    details->numProcArrayEntries = found;
    if (found > room || (found > 0 && details->procArray == NULL))
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < found; i++)
        details->procArray[i] = (nvmlProcessDetail_v1_t){.pid = processes[i].pid,
                                                         .usedGpuMemory = processes[i].bytes,
                                                         .gpuInstanceId = NVML_NO_INSTANCE,
                                                         .computeInstanceId = NVML_NO_INSTANCE};
    return NVML_SUCCESS;
}

/* Utilisation per process would name the neighbours; the share's own figure is in nvmlDeviceGetUtilizationRates. */
nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t handle, nvmlProcessUtilizationSample_t *samples,
                                             unsigned int *count, unsigned long long last_seen) {
    (void)samples;
    (void)last_seen;
    nvmlReturn_t result = none(handle, count);
    return result == NVML_SUCCESS ? NVML_ERROR_NOT_FOUND : result;
}

nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t handle, nvmlProcessesUtilizationInfo_v1_t *info) {
    nvmlReturn_t result = none(handle, info != NULL ? &info->processSamplesCount : NULL);
    return result == NVML_SUCCESS ? NVML_ERROR_NOT_FOUND : result;
}
