/* SPDX-License-Identifier: Apache-2.0 */
/* What NVML says of a device's health: as libvgpu.stub.change_settings has set it. */
#include "nvml/inside.h"

#define FIELD_RECOVERY_ACTION 230
#define REASON_HW_THERMAL     0x40

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, int *current, int *pending) {
    TRY(check_device(device));
    REQUIRE(current && pending, NVML_ERROR_INVALID_ARGUMENT);
    *current = *pending = NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, int type, int counter,
                                                unsigned long long *errors) {
    enum { UNCORRECTED = 1, VOLATILE = 0 };
    TRY(check_device(device));
    REQUIRE(errors, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(type == UNCORRECTED && counter == VOLATILE, NVML_ERROR_NOT_SUPPORTED);
    *errors = LOAD_RELAXED(device->card.shared->ecc_uncorrected);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *corrected, unsigned *uncorrected,
                                              unsigned *pending, unsigned *failed) {
    TRY(check_device(device));
    REQUIRE(corrected && uncorrected && pending && failed, NVML_ERROR_INVALID_ARGUMENT);
    *corrected = 0;
    *pending = LOAD_RELAXED(device->card.shared->remap_pending) != 0;
    *failed = LOAD_RELAXED(device->card.shared->remap_failed) != 0;
    *uncorrected = *pending + *failed;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, int *pending) {
    TRY(check_device(device));
    REQUIRE(pending, NVML_ERROR_INVALID_ARGUMENT);
    *pending = LOAD_RELAXED(device->card.shared->pages_pending) != 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    TRY(check_device(device));
    REQUIRE(reasons, NVML_ERROR_INVALID_ARGUMENT);
    *reasons = LOAD_RELAXED(device->card.shared->too_hot) ? REASON_HW_THERMAL : 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned link, int *active) {
    TRY(check_device(device));
    REQUIRE(active && link < LOAD_RELAXED(device->card.shared->links), NVML_ERROR_INVALID_ARGUMENT);
    *active = !(LOAD_RELAXED(device->card.shared->links_down) >> link & 1);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    TRY(check_device(device));
    REQUIRE(values && count > 0, NVML_ERROR_INVALID_ARGUMENT);
    for (int i = 0; i < count; i++) {
        values[i].nvmlReturn = values[i].fieldId == FIELD_RECOVERY_ACTION ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
        values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        values[i].value.uiVal = (unsigned)LOAD_RELAXED(device->card.shared->recovery_action);
    }
    return NVML_SUCCESS;
}
