/* SPDX-License-Identifier: Apache-2.0
 *
 * Number and order of the devices: those that this process has a share of, in the driver's order. Where a container has
 * device files of other cards too, or none are hidden at all (dra-driver run), NVML would list what cannot be used.
 */
#include "nvml/view.h"

#include <stddef.h>

/* Has this process a share of a part of the card (MIG)? NVML counts the card, and has its parts by index. */
static bool has_part_with_a_share(nvmlDevice_t card) {
    unsigned int parts = 0;
    nvmlReturn_t why_not;
    nvmlDevice_t part;
    if (VGPU_NVML(nvmlDeviceGetMaxMigDeviceCount)(card, &parts) != NVML_SUCCESS)
        return false;
    for (unsigned int i = 0; i < parts; i++)
        if (VGPU_NVML(nvmlDeviceGetMigDeviceHandleByIndex)(card, i, &part) == NVML_SUCCESS &&
            vgpu__nvml_device(part, &why_not) != NULL)
            return true;
    return false;
}

static bool is_ours(nvmlDevice_t device, nvmlReturn_t *why_not) {
    return vgpu__nvml_device(device, why_not) != NULL ||
           (*why_not == NVML_ERROR_NO_PERMISSION && has_part_with_a_share(device));
}

/* Count the devices with a share; *found becomes the one at a position among them, NULL if there are not as many. */
static nvmlReturn_t count_devices(unsigned int position, nvmlDevice_t *found, unsigned int *count) {
    unsigned int real = 0;
    *count = 0;
    *found = NULL;
    nvmlReturn_t result = VGPU_NVML(nvmlDeviceGetCount_v2)(&real);
    for (unsigned int i = 0; result == NVML_SUCCESS && i < real; i++) {
        nvmlDevice_t handle;
        nvmlReturn_t why_not;
        if (VGPU_NVML(nvmlDeviceGetHandleByIndex_v2)(i, &handle) != NVML_SUCCESS)
            continue; /* a card whose device file this container has not got */
        if (is_ours(handle, &why_not) && (*count)++ == position)
            *found = handle;
    }
    return result;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    nvmlDevice_t first;
    return count != NULL ? count_devices(0, &first, count) : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *count) {
    return nvmlDeviceGetCount_v2(count);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    unsigned int count;
    if (device == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = count_devices(index, device, &count);
    return result == NVML_SUCCESS && *device == NULL ? NVML_ERROR_INVALID_ARGUMENT : result;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

/* By whatever name: a card without a share is not found. */
static nvmlReturn_t only_with_a_share(nvmlReturn_t result, const nvmlDevice_t *device) {
    nvmlReturn_t why_not;
    if (result != NVML_SUCCESS || is_ours(*device, &why_not))
        return result;
    return why_not == NVML_ERROR_NO_PERMISSION ? NVML_ERROR_NOT_FOUND : why_not;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    return only_with_a_share(VGPU_NVML(nvmlDeviceGetHandleByUUID)(uuid, device), device);
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    return only_with_a_share(VGPU_NVML(nvmlDeviceGetHandleBySerial)(serial, device), device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device) {
    return only_with_a_share(VGPU_NVML(nvmlDeviceGetHandleByPciBusId)(bus_id, device), device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device) {
    return only_with_a_share(VGPU_NVML(nvmlDeviceGetHandleByPciBusId_v2)(bus_id, device), device);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    nvmlReturn_t result = VGPU_NVML(nvmlDeviceGetIndex)(device, index);
    if (result != NVML_SUCCESS)
        return result;
    for (unsigned int position = 0;; position++) {
        nvmlDevice_t found;
        unsigned int count;
        result = count_devices(position, &found, &count);
        if (result != NVML_SUCCESS || found == NULL)
            return result != NVML_SUCCESS ? result : NVML_ERROR_NO_PERMISSION;
        if (found == device) {
            *index = position;
            return NVML_SUCCESS;
        }
    }
}

/* Parts of others are not found. */
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *part) {
    return only_with_a_share(VGPU_NVML(nvmlDeviceGetMigDeviceHandleByIndex)(device, index, part), part);
}
