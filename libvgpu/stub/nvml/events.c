/* SPDX-License-Identifier: Apache-2.0 */
/* Event sets: what libvgpu.stub.inject_xid puts into a card's file comes out here. */
#include "nvml/inside.h"

#include <stdlib.h>

#define SUPPORTED_TYPES                                                                                                \
    (NVML_EVENT_TYPE_SINGLE_BIT_ECC_ERROR | NVML_EVENT_TYPE_DOUBLE_BIT_ECC_ERROR | NVML_EVENT_TYPE_XID_CRITICAL_ERROR)
#define LOOK_EVERY_NS 20000000u /* the writer is another program and wakes nobody */

struct nvmlEventSet_st {
    unsigned count;
    struct watched {
        nvmlDevice_t device;
        unsigned long long types;
        uint32_t seen;
    } devices[CARDS_MAX];
};

EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    TRY(check_started());
    REQUIRE(set, NVML_ERROR_INVALID_ARGUMENT);
    *set = calloc(1, sizeof **set);
    return *set ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    TRY(check_started());
    REQUIRE(set, NVML_ERROR_INVALID_ARGUMENT);
    free(set);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    TRY(check_device(device));
    REQUIRE(types, NVML_ERROR_INVALID_ARGUMENT);
    *types = SUPPORTED_TYPES;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    TRY(check_device(device));
    REQUIRE(set && !(types & ~SUPPORTED_TYPES), NVML_ERROR_INVALID_ARGUMENT);
    for (unsigned i = 0; i < set->count; i++) {
        if (set->devices[i].device == device) {
            set->devices[i].types |= types;
            return NVML_SUCCESS;
        }
    }
    set->devices[set->count++] = (struct watched){device, types, LOAD(device->card.shared->event_count)};
    return NVML_SUCCESS;
}

/* The next event of a watched device that was asked for. */
static bool next_event(struct watched *watched, nvmlEventData_t *data) {
    const struct stub_card *shared = watched->device->card.shared;
    uint32_t count = LOAD(shared->event_count);
    if (count - watched->seen > STUB_EVENTS)
        watched->seen = count - STUB_EVENTS; /* older ones are lost, as in a real queue */
    while (watched->seen != count) {
        const struct stub_event *event = &shared->events[watched->seen++ % STUB_EVENTS];
        if (!(event->type & watched->types))
            continue;
        *data = (nvmlEventData_t){watched->device, event->type, event->data, NVML_NO_INSTANCE, NVML_NO_INSTANCE};
        return true;
    }
    return false;
}

EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned timeout_ms) {
    TRY(check_started());
    REQUIRE(set && data, NVML_ERROR_INVALID_ARGUMENT);
    uint64_t until = now_ns() + timeout_ms * 1000000ull;
    for (;;) {
        for (unsigned i = 0; i < set->count; i++)
            if (next_event(&set->devices[i], data))
                return NVML_SUCCESS;
        uint64_t now = now_ns();
        if (now >= until)
            return NVML_ERROR_TIMEOUT;
        uint64_t pause = until - now < LOOK_EVERY_NS ? until - now : LOOK_EVERY_NS;
        nanosleep(&(struct timespec){0, (long)pause}, NULL);
    }
}

EXPORT nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned timeout_ms) {
    return nvmlEventSetWait_v2(set, data, timeout_ms);
}
