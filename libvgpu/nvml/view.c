/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory and utilisation: the size and the load of the share in the place of the card's.
 */
#include "nvml/view.h"

#include "core/limiter.h"

#include <stddef.h>

struct vgpu_device *vgpu__nvml_device(nvmlDevice_t handle, nvmlReturn_t *result) {
    struct vgpu_process *process = vgpu_process();
    char uuid[NVML_DEVICE_UUID_V2_BUFFER_SIZE] = "";
    *result = NVML_ERROR_NO_PERMISSION;
    if (process == NULL)
        return NULL;
    nvmlReturn_t asked = VGPU_NVML(nvmlDeviceGetUUID)(handle, uuid, sizeof uuid);
    if (asked != NVML_SUCCESS) {
        *result = asked;
        return NULL;
    }
    uuid[sizeof uuid - 1] = '\0';
    return vgpu_device_by_uuid(process, uuid);
}

/* The memory of the share; of a GPU without one, none. */
static nvmlReturn_t shown_memory(nvmlDevice_t handle, nvmlMemory_t *memory) {
    nvmlReturn_t result = NVML_SUCCESS;
    struct vgpu_device *device = vgpu__nvml_device(handle, &result);
    uint64_t total = 0, used = 0;
    if (device != NULL)
        vgpu_usage(device, &total, &used);
    memory->total = total;
    memory->used = used;
    memory->free = used < total ? total - used : 0;
    return device != NULL ? NVML_SUCCESS : result;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t handle, nvmlMemory_t *memory) {
    nvmlReturn_t result = VGPU_NVML(nvmlDeviceGetMemoryInfo)(handle, memory);
    return result == NVML_SUCCESS ? shown_memory(handle, memory) : result;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t handle, nvmlMemory_v2_t *memory) {
    nvmlReturn_t result = VGPU_NVML(nvmlDeviceGetMemoryInfo_v2)(handle, memory);
    if (result != NVML_SUCCESS)
        return result;
    nvmlMemory_t shown;
    result = shown_memory(handle, &shown);
    memory->total = shown.total;
    memory->used = shown.used;
    memory->reserved = 0; /* the driver's own part is outside the share */
    memory->free = shown.free;
    return result;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t handle, nvmlUtilization_t *utilization) {
    nvmlReturn_t result = VGPU_NVML(nvmlDeviceGetUtilizationRates)(handle, utilization);
    if (result != NVML_SUCCESS)
        return result;
    struct vgpu_device *device = vgpu__nvml_device(handle, &result);
    utilization->gpu = device != NULL ? vgpu_limiter_utilisation_percent(device) : 0;
    utilization->memory = 0; /* what other shares do to the memory bus is not this share's business */
    return device != NULL ? NVML_SUCCESS : result;
}

/* Samples of load would tell of the neighbours; other kinds (power, clocks) are the card's own. */
nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t handle, int type, unsigned long long last_seen, int *value_type,
                                  unsigned int *count, nvmlSample_t *samples) {
    enum { GPU_UTILIZATION = 1, MEMORY_UTILIZATION = 2 };
    if (type == GPU_UTILIZATION || type == MEMORY_UTILIZATION)
        return NVML_ERROR_NOT_SUPPORTED;
    return VGPU_NVML(nvmlDeviceGetSamples)(handle, type, last_seen, value_type, count, samples);
}

/* Fields are numbered, and most are the card's own: all but the traffic on its links, which is everybody's. */
static bool is_traffic(unsigned int field) {
    static const struct {
        unsigned int first, last;
    } traffic[] = {{60, 73}, {120, 131}, {138, 141}, {197, 198}, {201, 204}}; /* NVLink, NVLink, NVLink, PCIe, NVLink */
    for (size_t i = 0; i < sizeof traffic / sizeof *traffic; i++)
        if (field >= traffic[i].first && field <= traffic[i].last)
            return true;
    return false;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t handle, int count, nvmlFieldValue_t *values) {
    nvmlReturn_t result = VGPU_NVML(nvmlDeviceGetFieldValues)(handle, count, values);
    for (int i = 0; result == NVML_SUCCESS && i < count; i++) {
        if (is_traffic(values[i].fieldId)) {
            values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
            values[i].value = (nvmlValue_t){.ullVal = 0};
        }
    }
    return result;
}
