/* SPDX-License-Identifier: Apache-2.0 */
/* Starting and ending NVML, versions, and finding devices. */
#include "nvml/inside.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned started;    /* nvmlInit calls without their nvmlShutdown */
static unsigned count;      /* of all */
static unsigned card_count; /* of those that are no part of another; they come first */
static struct nvmlDevice_st devices[CARDS_MAX];

static void list(const struct card *found) {
    unsigned at = 0;
    for (int parts = 0; parts < 2; parts++) {
        for (unsigned i = 0; i < count; i++)
            if ((found[i].shared->parent_uuid[0] != 0) == parts) {
                devices[at] = (struct nvmlDevice_st){found[i], at};
                at++;
            }
        card_count = parts ? card_count : at;
    }
}

/* ---- Start and end ---- */

EXPORT nvmlReturn_t nvmlInit_v2(void) {
    static struct card found[CARDS_MAX];
    nvmlReturn_t result = NVML_SUCCESS;
    pthread_mutex_lock(&lock);
    if (started == 0) {
        count = (unsigned)cards_open(found, false);
        list(found);
        result = count ? NVML_SUCCESS : NVML_ERROR_DRIVER_NOT_LOADED;
    }
    started += result == NVML_SUCCESS;
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT nvmlReturn_t nvmlInit(void) {
    return nvmlInit_v2();
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return nvmlInit_v2();
}

EXPORT nvmlReturn_t nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    nvmlReturn_t result = started ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
    if (started && --started == 0) {
        for (unsigned i = 0; i < count; i++)
            cards_close(&devices[i].card, 1);
        count = 0;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

nvmlReturn_t check_started(void) {
    return started ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t check_device(nvmlDevice_t device) {
    TRY(check_started());
    REQUIRE(device >= devices && device < devices + count, NVML_ERROR_INVALID_ARGUMENT);
    return LOAD_RELAXED(device->card.shared->lost) ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

nvmlReturn_t give_text(char *to, unsigned length, const char *text) {
    REQUIRE(to, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(length > strlen(text), NVML_ERROR_INSUFFICIENT_SIZE);
    strcpy(to, text);
    return NVML_SUCCESS;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
#define X(name, value, text)                                                                                           \
    case name:                                                                                                         \
        return text;
        ABI_NVMLRETURNS(X)
#undef X
    }
    return "Unknown Error";
}

/* ---- Versions ---- */

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    TRY(check_started());
    return give_text(version, length, devices[0].card.shared->driver_version);
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    char text[64];
    TRY(check_started());
    const struct stub_card *shared = devices[0].card.shared;
    snprintf(text, sizeof text, "%u.%s", shared->cuda_version / 1000, shared->driver_version);
    return give_text(version, length, text);
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    TRY(check_started());
    REQUIRE(version, NVML_ERROR_INVALID_ARGUMENT);
    *version = (int)devices[0].card.shared->cuda_version;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    char path[64], text[4096];
    TRY(check_started());
    REQUIRE(name && length, NVML_ERROR_INVALID_ARGUMENT);
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    REQUIRE(file, NVML_ERROR_NOT_FOUND);
    size_t read = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[read] = 0; /* the first argument ends at its own zero */
    snprintf(name, length, "%s", text);
    return NVML_SUCCESS;
}

/* ---- Finding devices ---- */

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *out) {
    TRY(check_started());
    REQUIRE(out, NVML_ERROR_INVALID_ARGUMENT);
    *out = card_count;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned *out) {
    return nvmlDeviceGetCount_v2(out);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    TRY(check_started());
    REQUIRE(device && index < card_count, NVML_ERROR_INVALID_ARGUMENT);
    *device = &devices[index];
    return check_device(*device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    TRY(check_started());
    REQUIRE(uuid && device, NVML_ERROR_INVALID_ARGUMENT);
    for (unsigned i = 0; i < count; i++) {
        if (strcasecmp(devices[i].card.shared->uuid, uuid) == 0) {
            *device = &devices[i];
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

nvmlDevice_t part_of(nvmlDevice_t device, unsigned index) {
    for (unsigned i = card_count; i < count; i++)
        if (strcasecmp(devices[i].card.shared->parent_uuid, device->card.shared->uuid) == 0 && index-- == 0)
            return &devices[i];
    return NULL;
}

nvmlDevice_t parent_of(nvmlDevice_t part) {
    for (unsigned i = 0; i < card_count; i++)
        if (strcasecmp(devices[i].card.shared->uuid, part->card.shared->parent_uuid) == 0)
            return &devices[i];
    return NULL;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    TRY(check_started());
    REQUIRE(serial && device, NVML_ERROR_INVALID_ARGUMENT);
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(devices[i].card.shared->serial, serial) == 0) {
            *device = &devices[i];
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device) {
    unsigned domain = 0, bus, slot;
    TRY(check_started());
    REQUIRE(bus_id && device, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(sscanf(bus_id, "%x:%x:%x", &domain, &bus, &slot) == 3 || sscanf(bus_id, "%x:%x", &bus, &slot) == 2,
            NVML_ERROR_INVALID_ARGUMENT);
    for (unsigned i = 0; i < count; i++) {
        const struct stub_card *shared = devices[i].card.shared;
        if (shared->pci_domain == domain && shared->pci_bus == bus && shared->pci_device == slot) {
            *device = &devices[i];
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByPciBusId_v2(bus_id, device);
}
