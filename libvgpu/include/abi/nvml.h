/* SPDX-License-Identifier: Apache-2.0
 *
 * The binary interface of NVML, as far as libvgpu and the stub driver need it: our own declarations of facts (sizes,
 * layouts, constants, exported names), checked by tests/unit/stub/check_abi.py against the vendor's header.
 *
 * A declaration stands for the exported symbol of exactly that name: nothing here renames nvmlInit to nvmlInit_v2. The
 * functions stand in nvml_api.def; each line becomes a prototype and a pointer type (nvmlInit_v2_fn).
 */
#ifndef VGPU_ABI_NVML_H
#define VGPU_ABI_NVML_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* X(name, value, text): the text is ours, what nvmlErrorString of the stub answers. */
#define ABI_NVMLRETURNS(X)                                                                                             \
    X(NVML_SUCCESS, 0, "Success")                                                                                      \
    X(NVML_ERROR_UNINITIALIZED, 1, "Uninitialized")                                                                    \
    X(NVML_ERROR_INVALID_ARGUMENT, 2, "Invalid Argument")                                                              \
    X(NVML_ERROR_NOT_SUPPORTED, 3, "Not Supported")                                                                    \
    X(NVML_ERROR_NO_PERMISSION, 4, "Insufficient Permissions")                                                         \
    X(NVML_ERROR_ALREADY_INITIALIZED, 5, "Already Initialized")                                                        \
    X(NVML_ERROR_NOT_FOUND, 6, "Not Found")                                                                            \
    X(NVML_ERROR_INSUFFICIENT_SIZE, 7, "Insufficient Size")                                                            \
    X(NVML_ERROR_INSUFFICIENT_POWER, 8, "Insufficient External Power")                                                 \
    X(NVML_ERROR_DRIVER_NOT_LOADED, 9, "Driver Not Loaded")                                                            \
    X(NVML_ERROR_TIMEOUT, 10, "Timeout")                                                                               \
    X(NVML_ERROR_IRQ_ISSUE, 11, "Interrupt Request Issue")                                                             \
    X(NVML_ERROR_LIBRARY_NOT_FOUND, 12, "NVML Shared Library Not Found")                                               \
    X(NVML_ERROR_FUNCTION_NOT_FOUND, 13, "Function Not Found")                                                         \
    X(NVML_ERROR_GPU_IS_LOST, 15, "GPU is lost")                                                                       \
    X(NVML_ERROR_RESET_REQUIRED, 16, "GPU requires reset")                                                             \
    X(NVML_ERROR_OPERATING_SYSTEM, 17, "GPU access blocked by the operating system")                                   \
    X(NVML_ERROR_LIB_RM_VERSION_MISMATCH, 18, "Driver/library version mismatch")                                       \
    X(NVML_ERROR_IN_USE, 19, "In use by another client")                                                               \
    X(NVML_ERROR_MEMORY, 20, "Insufficient Memory")                                                                    \
    X(NVML_ERROR_NO_DATA, 21, "No data")                                                                               \
    X(NVML_ERROR_INSUFFICIENT_RESOURCES, 23, "Insufficient resources")                                                 \
    X(NVML_ERROR_ARGUMENT_VERSION_MISMATCH, 25, "Argument version mismatch")                                           \
    X(NVML_ERROR_DEPRECATED, 26, "Deprecated")                                                                         \
    X(NVML_ERROR_NOT_READY, 27, "Not Ready")                                                                           \
    X(NVML_ERROR_GPU_NOT_FOUND, 28, "GPU Not Found")                                                                   \
    X(NVML_ERROR_INVALID_STATE, 29, "Invalid State")                                                                   \
    X(NVML_ERROR_UNKNOWN, 999, "Unknown Error")

typedef enum nvmlReturn_enum {
#define ABI_X(name, value, text) name = value,
    ABI_NVMLRETURNS(ABI_X)
#undef ABI_X
} nvmlReturn_t;

typedef struct nvmlDevice_st *nvmlDevice_t;
typedef struct nvmlEventSet_st *nvmlEventSet_t;
typedef struct nvmlUnit_st *nvmlUnit_t;

/* The version word of a versioned structure: its size, and the version in the top byte. */
#define NVML_STRUCT_VERSION(type, version) ((unsigned int)(sizeof(type) | ((unsigned)(version) << 24)))

#define NVML_VALUE_NOT_AVAILABLE_ULL 0xFFFFFFFFFFFFFFFFULL
#define NVML_NO_INSTANCE             0xFFFFFFFFu /* gpuInstanceId and computeInstanceId where MIG is off */

enum { /* sizes that callers pass */
       NVML_DEVICE_NAME_V2_BUFFER_SIZE = 96,
       NVML_DEVICE_UUID_V2_BUFFER_SIZE = 96,
       NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE = 80,
       NVML_SYSTEM_NVML_VERSION_BUFFER_SIZE = 80,
       NVML_DEVICE_PCI_BUS_ID_BUFFER_SIZE = 32,
       NVML_DEVICE_PCI_BUS_ID_BUFFER_V2_SIZE = 16
};

typedef struct nvmlMemory_st {
    unsigned long long total;
    unsigned long long free;
    unsigned long long used;
} nvmlMemory_t;

typedef struct nvmlMemory_v2_st {
    unsigned int version; /* NVML_STRUCT_VERSION(nvmlMemory_v2_t, 2) */
    unsigned long long total;
    unsigned long long reserved;
    unsigned long long free;
    unsigned long long used;
} nvmlMemory_v2_t;
#define nvmlMemory_v2_version NVML_STRUCT_VERSION(nvmlMemory_v2_t, 2)

typedef struct nvmlBAR1Memory_st {
    unsigned long long bar1Total;
    unsigned long long bar1Free;
    unsigned long long bar1Used;
} nvmlBAR1Memory_t;

typedef struct nvmlUtilization_st {
    unsigned int gpu;
    unsigned int memory;
} nvmlUtilization_t;

typedef struct nvmlProcessInfo_v1_st {
    unsigned int pid;
    unsigned long long usedGpuMemory;
} nvmlProcessInfo_v1_t;

typedef struct nvmlProcessInfo_v2_st {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId;
    unsigned int computeInstanceId;
} nvmlProcessInfo_v2_t;
typedef nvmlProcessInfo_v2_t nvmlProcessInfo_t; /* what the _v3 functions take */

typedef struct nvmlProcessDetail_v1_st {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId;
    unsigned int computeInstanceId;
    unsigned long long usedGpuCcProtectedMemory;
} nvmlProcessDetail_v1_t;

typedef struct nvmlProcessDetailList_v1_st {
    unsigned int version; /* NVML_STRUCT_VERSION(nvmlProcessDetailList_v1_t, 1) */
    unsigned int mode;    /* 0 compute, 1 graphics, 2 MPS compute */
    unsigned int numProcArrayEntries;
    nvmlProcessDetail_v1_t *procArray;
} nvmlProcessDetailList_v1_t;

typedef struct nvmlProcessUtilizationSample_st {
    unsigned int pid;
    unsigned long long timeStamp; /* microseconds since the epoch */
    unsigned int smUtil;
    unsigned int memUtil;
    unsigned int encUtil;
    unsigned int decUtil;
} nvmlProcessUtilizationSample_t;

typedef struct nvmlProcessUtilizationInfo_v1_st {
    unsigned long long timeStamp;
    unsigned int pid;
    unsigned int smUtil;
    unsigned int memUtil;
    unsigned int encUtil;
    unsigned int decUtil;
    unsigned int jpgUtil;
    unsigned int ofaUtil;
} nvmlProcessUtilizationInfo_v1_t;

typedef struct nvmlProcessesUtilizationInfo_v1_st {
    unsigned int version; /* NVML_STRUCT_VERSION(nvmlProcessesUtilizationInfo_v1_t, 1) */
    unsigned int processSamplesCount;
    unsigned long long lastSeenTimeStamp;
    nvmlProcessUtilizationInfo_v1_t *procUtilArray;
} nvmlProcessesUtilizationInfo_v1_t;

typedef union nvmlValue_st {
    double dVal;
    int siVal;
    unsigned int uiVal;
    unsigned long ulVal;
    unsigned long long ullVal;
    long long sllVal;
    unsigned short usVal;
} nvmlValue_t;

typedef struct nvmlFieldValue_st {
    unsigned int fieldId;
    unsigned int scopeId;
    long long timestamp;
    long long latencyUsec;
    int valueType;
    nvmlReturn_t nvmlReturn;
    nvmlValue_t value;
} nvmlFieldValue_t;

typedef struct nvmlSample_st {
    unsigned long long timeStamp;
    nvmlValue_t sampleValue;
} nvmlSample_t;

typedef struct nvmlPciInfo_st {
    char busIdLegacy[NVML_DEVICE_PCI_BUS_ID_BUFFER_V2_SIZE];
    unsigned int domain;
    unsigned int bus;
    unsigned int device;
    unsigned int pciDeviceId;
    unsigned int pciSubSystemId;
    char busId[NVML_DEVICE_PCI_BUS_ID_BUFFER_SIZE];
} nvmlPciInfo_t;

typedef struct nvmlEventData_st {
    nvmlDevice_t device;
    unsigned long long eventType;
    unsigned long long eventData; /* the Xid */
    unsigned int gpuInstanceId;
    unsigned int computeInstanceId;
} nvmlEventData_t;

#define NVML_EVENT_TYPE_SINGLE_BIT_ECC_ERROR 0x1ULL
#define NVML_EVENT_TYPE_DOUBLE_BIT_ECC_ERROR 0x2ULL
#define NVML_EVENT_TYPE_XID_CRITICAL_ERROR   0x8ULL

enum { /* nvmlDeviceGetArchitecture */
       NVML_DEVICE_ARCH_VOLTA = 5,
       NVML_DEVICE_ARCH_TURING = 6,
       NVML_DEVICE_ARCH_AMPERE = 7,
       NVML_DEVICE_ARCH_ADA = 8,
       NVML_DEVICE_ARCH_HOPPER = 9,
       NVML_DEVICE_ARCH_BLACKWELL = 10
};

enum { /* small enumerations that travel as ints */
       NVML_FEATURE_DISABLED = 0,
       NVML_FEATURE_ENABLED = 1,
       NVML_DEVICE_MIG_DISABLE = 0,
       NVML_DEVICE_MIG_ENABLE = 1,
       NVML_COMPUTEMODE_DEFAULT = 0,
       NVML_TEMPERATURE_GPU = 0,
       NVML_CLOCK_GRAPHICS = 0,
       NVML_CLOCK_SM = 1,
       NVML_CLOCK_MEM = 2,
       NVML_CLOCK_VIDEO = 3,
       NVML_PSTATE_0 = 0,
       NVML_PSTATE_8 = 8,
       NVML_BRAND_NVIDIA = 14,
       NVML_GPU_UTILIZATION_SAMPLES = 1,
       NVML_MEMORY_UTILIZATION_SAMPLES = 2,
       NVML_VALUE_TYPE_UNSIGNED_INT = 1
};

#define NVML_API(symbol, params)                                                                                       \
    nvmlReturn_t symbol params;                                                                                        \
    typedef nvmlReturn_t(*symbol##_fn) params;
#include "nvml_api.def"
#undef NVML_API

const char *nvmlErrorString(nvmlReturn_t result);

#ifdef __cplusplus
}
#endif

#endif
