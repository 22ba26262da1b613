/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/visible.h"

#include "nvml/real.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define VARIABLE "CUDA_VISIBLE_DEVICES"

enum { UUID_BYTES = 48, ENTRY_BYTES = sizeof VARIABLE + VGPU_MAX_SHARES * UUID_BYTES };

struct devices {
    const char *uuids[VGPU_MAX_SHARES];
    uint32_t count;
};

static bool has(const struct devices *devices, const char *uuid) {
    for (uint32_t i = 0; i < devices->count; i++)
        if (devices->uuids[i] == uuid)
            return true;
    return false;
}

/* The devices with a share: in NVML's order, then those that it does not list (parts of a card). False: there is no
 * card without a share, or NVML cannot say. */
static bool list(struct vgpu_process *process, struct devices *devices) {
    unsigned int cards = 0;
    bool hidden = false;
    if (vgpu__nvml_start() != NVML_SUCCESS || VGPU_NVML(nvmlDeviceGetCount_v2)(&cards) != NVML_SUCCESS)
        return false;
    for (unsigned int i = 0; i < cards; i++) {
        nvmlDevice_t card;
        char uuid[NVML_DEVICE_UUID_V2_BUFFER_SIZE] = "";
        if (VGPU_NVML(nvmlDeviceGetHandleByIndex_v2)(i, &card) != NVML_SUCCESS ||
            VGPU_NVML(nvmlDeviceGetUUID)(card, uuid, sizeof uuid) != NVML_SUCCESS)
            continue;
        uuid[sizeof uuid - 1] = '\0';
        struct vgpu_device *device = vgpu_device_by_uuid(process, uuid);
        hidden |= device == NULL;
        if (device != NULL && !has(devices, device->uuid))
            devices->uuids[devices->count++] = device->uuid;
    }
    for (uint32_t i = 0; i < process->device_count; i++)
        if (strncasecmp(process->devices[i].uuid, "MIG-", 4) == 0 && !has(devices, process->devices[i].uuid))
            devices->uuids[devices->count++] = process->devices[i].uuid;
    return hidden && devices->count > 0;
}

/* What one entry of the application's own setting means: a number among the devices with a share, or the start of a
 * UUID. NULL: none of them. */
static const char *find(const struct devices *devices, const char *entry, size_t length) {
    char *end;
    unsigned long number = strtoul(entry, &end, 10);
    if (length > 0 && entry[0] >= '0' && entry[0] <= '9' && end == entry + length)
        return number < devices->count ? devices->uuids[number] : NULL;
    for (uint32_t i = 0; length > 4 && i < devices->count; i++)
        if (strncasecmp(devices->uuids[i], entry, length) == 0)
            return devices->uuids[i];
    return NULL;
}

/* As the driver reads it: up to the first entry that means nothing. */
static void narrow(struct devices *devices, const char *setting) {
    struct devices wanted = {.count = 0};
    for (const char *entry = setting; entry != NULL && wanted.count < VGPU_MAX_SHARES;) {
        const char *comma = strchr(entry, ',');
        const char *uuid = find(devices, entry, comma != NULL ? (size_t)(comma - entry) : strlen(entry));
        if (uuid == NULL || has(&wanted, uuid))
            break;
        wanted.uuids[wanted.count++] = uuid;
        entry = comma != NULL ? comma + 1 : NULL;
    }
    *devices = wanted;
}

/* The variable for the driver; never freed: other threads may be reading it. */
static char *entry_of(const struct devices *devices) {
    char *entry = malloc(ENTRY_BYTES);
    if (entry == NULL)
        return NULL;
    strcpy(entry, VARIABLE "=");
    for (uint32_t i = 0; i < devices->count; i++) {
        if (i > 0)
            strcat(entry, ",");
        strcat(entry, devices->uuids[i]);
    }
    return entry;
}

/* Where the variable stands in the environment, as "NAME=value"; NULL: it is not set. */
static char *current_entry(void) {
    char *value = getenv(VARIABLE);
    return value != NULL ? value - sizeof VARIABLE : NULL;
}

bool vgpu__visible_begin(struct vgpu_process *process, struct vgpu_setting *setting) {
    struct devices devices = {.count = 0};
    if (!list(process, &devices))
        return false;
    setting->before = current_entry();
    if (setting->before != NULL)
        narrow(&devices, setting->before + sizeof VARIABLE);
    setting->ours = entry_of(&devices);
    return setting->ours != NULL && putenv(setting->ours) == 0;
}

void vgpu__visible_end(const struct vgpu_setting *setting) {
    if (current_entry() != setting->ours)
        return; /* the application has set another one meanwhile */
    if (setting->before != NULL)
        putenv(setting->before);
    else
        unsetenv(VARIABLE);
}
