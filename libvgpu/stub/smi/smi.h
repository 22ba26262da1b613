/* SPDX-License-Identifier: Apache-2.0 */
/* The stub's nvidia-smi: main.c options, library.c NVML at run time, table.c the table, query.c comma-separated values.
 */
#ifndef VGPU_STUB_SMI_H
#define VGPU_STUB_SMI_H

#include "abi/nvml.h"

#include <stdbool.h>

/* X(function): the functions of NVML that are used, looked up by name in what dlopen finds, so that whatever stands
 * between a program and NVML stands between this one and it too. */
#define SMI_FUNCTIONS(X)                                                                                               \
    X(nvmlInit_v2)                                                                                                     \
    X(nvmlShutdown)                                                                                                    \
    X(nvmlSystemGetDriverVersion)                                                                                      \
    X(nvmlSystemGetCudaDriverVersion_v2)                                                                               \
    X(nvmlSystemGetProcessName)                                                                                        \
    X(nvmlDeviceGetCount_v2)                                                                                           \
    X(nvmlDeviceGetHandleByIndex_v2)                                                                                   \
    X(nvmlDeviceGetName)                                                                                               \
    X(nvmlDeviceGetUUID)                                                                                               \
    X(nvmlDeviceGetSerial)                                                                                             \
    X(nvmlDeviceGetPciInfo_v3)                                                                                         \
    X(nvmlDeviceGetMemoryInfo)                                                                                         \
    X(nvmlDeviceGetMemoryInfo_v2)                                                                                      \
    X(nvmlDeviceGetUtilizationRates)                                                                                   \
    X(nvmlDeviceGetTemperature)                                                                                        \
    X(nvmlDeviceGetPowerUsage)                                                                                         \
    X(nvmlDeviceGetEnforcedPowerLimit)                                                                                 \
    X(nvmlDeviceGetMigMode)                                                                                            \
    X(nvmlDeviceGetCudaComputeCapability)                                                                              \
    X(nvmlDeviceGetComputeRunningProcesses_v3)

struct nvml {
#define X(function) function##_fn function;
    SMI_FUNCTIONS(X)
#undef X
};

struct gpu {
    nvmlDevice_t device;
    unsigned index;
    char name[96], uuid[96], serial[32];
    nvmlPciInfo_t pci;
    nvmlMemory_t memory;
    nvmlMemory_v2_t memory_v2;
    nvmlUtilization_t utilization;
    unsigned celsius, milliwatts, limit_milliwatts, mig;
    int capability[2];
};

#define SMI_GPUS_MAX      64
#define SMI_PROCESSES_MAX 1024
#define MIB               (1024ull * 1024ull)

struct report {
    struct nvml nvml;
    char driver_version[80];
    int cuda_version;
    unsigned count;
    struct gpu gpus[SMI_GPUS_MAX];
};

/* Loads and starts NVML and asks all GPUs; only (-1: all) chooses one. Prints why and returns false if that fails. */
bool report_read(struct report *report, int only);
unsigned report_processes(const struct report *report, const struct gpu *gpu, nvmlProcessInfo_t *processes);
unsigned mib(unsigned long long bytes);

void print_table(const struct report *report);
void print_list(const struct report *report);

/* fields: as after --query-gpu=; returns the exit status. */
int query_gpus(const struct report *report, const char *fields, bool header, bool units);
int query_processes(const struct report *report, const char *fields, bool header, bool units);

#endif
