/* SPDX-License-Identifier: Apache-2.0
 *
 * Number and order of the devices: those that this process has a share of, in the driver's order. Where a container has
 * device files of other cards too, or none are hidden at all (dra-driver run), NVML would list what cannot be used.
 */
#include "nvml/view.h"

#include <stddef.h>
#include <strings.h>

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
        if (vgpu__nvml_device(handle, &why_not) != NULL && (*count)++ == position)
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

/* A container with a part of a card finds it through the card itself. */
static bool has_part_of_a_card(void) {
    struct vgpu_process *process = vgpu_process();
    for (uint32_t i = 0; process != NULL && i < process->device_count; i++)
        if (strncasecmp(process->devices[i].uuid, "MIG-", 4) == 0)
            return true;
    return false;
}

/* By whatever name: a card without a share is not found. */
static nvmlReturn_t only_with_a_share(nvmlReturn_t result, const nvmlDevice_t *device) {
    nvmlReturn_t why_not;
    if (result != NVML_SUCCESS || vgpu__nvml_device(*device, &why_not) != NULL || has_part_of_a_card())
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
