/* SPDX-License-Identifier: Apache-2.0 */
/* What NVML says a device is doing: memory and load as the card counted them, the rest derived from the load. */
#include "nvml/inside.h"

#define BAR1_BYTES       (128ull << 30)
#define IDLE_MILLIWATTS  70000u
#define LIMIT_MILLIWATTS 700000u

/* Busy percent of the last second. */
static unsigned busy_percent(const struct stub_usage *history, uint32_t length) {
    uint64_t percent = (usage_last_second(history, length, now_ns()) + 5000000u) / 10000000u;
    return percent > 100 ? 100 : (unsigned)percent;
}

static unsigned load(nvmlDevice_t device) {
    return busy_percent(device->card.shared->usage, STUB_CARD_USAGE);
}

/* ---- Memory ---- */

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    TRY(check_device(device));
    REQUIRE(memory, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(memory->version == nvmlMemory_v2_version, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    const struct stub_card *shared = device->card.shared;
    memory->total = shared->memory_bytes;
    memory->reserved = shared->reserved_bytes;
    memory->used = card_used_bytes(&device->card);
    uint64_t room = card_room_bytes(shared);
    memory->free = memory->used < room ? room - memory->used : 0;
    return NVML_SUCCESS;
}

/* The older call counts what is reserved as used. */
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    nvmlMemory_v2_t newer = {.version = nvmlMemory_v2_version};
    REQUIRE(memory, NVML_ERROR_INVALID_ARGUMENT);
    TRY(nvmlDeviceGetMemoryInfo_v2(device, &newer));
    *memory = (nvmlMemory_t){newer.total, newer.free, newer.used + newer.reserved};
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory) {
    TRY(check_device(device));
    REQUIRE(memory, NVML_ERROR_INVALID_ARGUMENT);
    *memory = (nvmlBAR1Memory_t){BAR1_BYTES, BAR1_BYTES - (1 << 20), 1 << 20};
    return NVML_SUCCESS;
}

/* ---- Load ---- */

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    TRY(check_device(device));
    REQUIRE(utilization, NVML_ERROR_INVALID_ARGUMENT);
    *utilization = (nvmlUtilization_t){load(device), load(device) / 2};
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, int type, unsigned long long last_seen, int *value_type,
                                         unsigned *count, nvmlSample_t *samples) {
    TRY(check_device(device));
    REQUIRE(value_type && count, NVML_ERROR_INVALID_ARGUMENT);
    REQUIRE(type == NVML_GPU_UTILIZATION_SAMPLES || type == NVML_MEMORY_UTILIZATION_SAMPLES, NVML_ERROR_NOT_SUPPORTED);
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    uint64_t wall_us = (uint64_t)wall.tv_sec * 1000000u + (uint64_t)wall.tv_nsec / 1000u;
    uint64_t tenth = now_ns() / 100000000u;
    enum { SAMPLES = 10 };
    *value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
    if (!samples) {
        *count = SAMPLES;
        return NVML_SUCCESS;
    }
    unsigned given = 0;
    for (unsigned back = SAMPLES; back >= 1 && given < *count; back--) {
        const struct stub_usage *bucket = &device->card.shared->usage[(tenth - back) % STUB_CARD_USAGE];
        uint64_t busy = LOAD_RELAXED(bucket->tenth) == tenth - back ? LOAD_RELAXED(bucket->busy_ns) : 0;
        uint64_t time = wall_us - (back - 1) * 100000u;
        unsigned percent = (unsigned)(busy / 1000000u);
        if (time > last_seen)
            samples[given++] =
                (nvmlSample_t){time, {.uiVal = type == NVML_GPU_UTILIZATION_SAMPLES ? percent : percent / 2}};
    }
    *count = given;
    return given ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t no_media(nvmlDevice_t device, unsigned *utilization, unsigned *period_us) {
    TRY(check_device(device));
    REQUIRE(utilization && period_us, NVML_ERROR_INVALID_ARGUMENT);
    *utilization = 0;
    *period_us = 167000;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned *utilization, unsigned *period_us) {
    return no_media(device, utilization, period_us);
}

EXPORT nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned *utilization, unsigned *period_us) {
    return no_media(device, utilization, period_us);
}

/* ---- Temperature, power, clocks ---- */

static nvmlReturn_t give(nvmlDevice_t device, unsigned *out, unsigned value) {
    TRY(check_device(device));
    REQUIRE(out, NVML_ERROR_INVALID_ARGUMENT);
    *out = value;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned *celsius) {
    TRY(check_device(device));
    REQUIRE(sensor == NVML_TEMPERATURE_GPU, NVML_ERROR_INVALID_ARGUMENT);
    return give(device, celsius, 32 + load(device) * 2 / 5);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, int threshold, unsigned *celsius) {
    return give(device, celsius, threshold == 0 ? 92 : 87);
}

EXPORT nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned *percent) {
    TRY(check_device(device));
    return percent ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT; /* passively cooled */
}

EXPORT nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, int *state) {
    TRY(check_device(device));
    REQUIRE(state, NVML_ERROR_INVALID_ARGUMENT);
    *state = NVML_PSTATE_0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts) {
    TRY(check_device(device));
    return give(device, milliwatts, IDLE_MILLIWATTS + load(device) * (LIMIT_MILLIWATTS - IDLE_MILLIWATTS) / 100);
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned *milliwatts) {
    return give(device, milliwatts, LIMIT_MILLIWATTS);
}

EXPORT nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned *milliwatts) {
    return give(device, milliwatts, LIMIT_MILLIWATTS);
}

/* Idle power since the machine started, and what the processes added. */
EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    TRY(check_device(device));
    REQUIRE(millijoules, NVML_ERROR_INVALID_ARGUMENT);
    const struct stub_card *shared = device->card.shared;
    double busy_ns = (double)shared->ended_gpu_time_ns;
    for (int i = 0; i < STUB_SLOTS; i++)
        busy_ns += (double)LOAD_RELAXED(shared->slots[i].gpu_time_ns);
    double watts = (LIMIT_MILLIWATTS - IDLE_MILLIWATTS) / 1e3;
    *millijoules = (unsigned long long)(now_ns() / 1e6 * (IDLE_MILLIWATTS / 1e3) + busy_ns / 1e6 * watts);
    return NVML_SUCCESS;
}

static unsigned clock_limit(int type) {
    return type == NVML_CLOCK_MEM ? 2619 : type == NVML_CLOCK_VIDEO ? 1545 : 1980;
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, int type, unsigned *mhz) {
    REQUIRE(type >= 0 && type <= NVML_CLOCK_VIDEO, NVML_ERROR_INVALID_ARGUMENT);
    return give(device, mhz, clock_limit(type));
}

EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, int type, unsigned *mhz) {
    REQUIRE(type >= 0 && type <= NVML_CLOCK_VIDEO, NVML_ERROR_INVALID_ARGUMENT);
    TRY(check_device(device));
    return give(device, mhz, type == NVML_CLOCK_MEM || load(device) ? clock_limit(type) : 345);
}
