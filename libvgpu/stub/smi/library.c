/* SPDX-License-Identifier: Apache-2.0 */
/* NVML at run time, and everything that is asked of it for one run. */
#include "smi/smi.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

unsigned mib(unsigned long long bytes) {
    return (unsigned)(bytes / MIB);
}

static bool load(struct nvml *nvml) {
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!library) {
        puts(
            "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA Display "
            "Driver is properly installed and present in your system.");
        return false;
    }
    bool complete = true;
#define X(function)                                                                                                    \
    *(void **)&nvml->function = dlsym(library, #function);                                                             \
    complete = complete && nvml->function;
    SMI_FUNCTIONS(X)
#undef X
    if (!complete)
        puts("NVIDIA-SMI found a libnvidia-ml.so.1 without the functions that it needs.");
    return complete;
}

static nvmlReturn_t ask(const struct nvml *nvml, unsigned index, struct gpu *gpu) {
    nvmlReturn_t result = nvml->nvmlDeviceGetHandleByIndex_v2(index, &gpu->device);
    if (result != NVML_SUCCESS)
        return result;
    gpu->index = index;
    gpu->memory_v2.version = nvmlMemory_v2_version;
    nvml->nvmlDeviceGetName(gpu->device, gpu->name, sizeof gpu->name);
    nvml->nvmlDeviceGetUUID(gpu->device, gpu->uuid, sizeof gpu->uuid);
    nvml->nvmlDeviceGetSerial(gpu->device, gpu->serial, sizeof gpu->serial);
    nvml->nvmlDeviceGetPciInfo_v3(gpu->device, &gpu->pci);
    nvml->nvmlDeviceGetUtilizationRates(gpu->device, &gpu->utilization);
    nvml->nvmlDeviceGetTemperature(gpu->device, NVML_TEMPERATURE_GPU, &gpu->celsius);
    nvml->nvmlDeviceGetPowerUsage(gpu->device, &gpu->milliwatts);
    nvml->nvmlDeviceGetEnforcedPowerLimit(gpu->device, &gpu->limit_milliwatts);
    unsigned pending;
    nvml->nvmlDeviceGetMigMode(gpu->device, &gpu->mig, &pending);
    nvml->nvmlDeviceGetCudaComputeCapability(gpu->device, &gpu->capability[0], &gpu->capability[1]);
    nvml->nvmlDeviceGetMemoryInfo_v2(gpu->device, &gpu->memory_v2);
    return nvml->nvmlDeviceGetMemoryInfo(gpu->device, &gpu->memory);
}

bool report_read(struct report *report, int only) {
    const struct nvml *nvml = &report->nvml;
    if (!load(&report->nvml))
        return false;
    nvmlReturn_t result = nvml->nvmlInit_v2();
    if (result == NVML_ERROR_DRIVER_NOT_LOADED) {
        puts("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
             "NVIDIA driver is installed and running.");
        return false;
    }
    unsigned count = 0;
    if (result == NVML_SUCCESS)
        result = nvml->nvmlDeviceGetCount_v2(&count);
    if (result == NVML_SUCCESS && count == 0)
        puts("No devices were found");
    nvml->nvmlSystemGetDriverVersion(report->driver_version, sizeof report->driver_version);
    nvml->nvmlSystemGetCudaDriverVersion_v2(&report->cuda_version);
    for (unsigned i = 0; i < count && result == NVML_SUCCESS; i++)
        if (only < 0 || (unsigned)only == i)
            result = ask(nvml, i, &report->gpus[report->count++]);
    if (result != NVML_SUCCESS) {
        printf("Failed to initialize NVML: error %d\n", (int)result);
        return false;
    }
    return report->count > 0;
}

unsigned report_processes(const struct report *report, const struct gpu *gpu, nvmlProcessInfo_t *processes) {
    unsigned count = SMI_PROCESSES_MAX;
    bool known = report->nvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu->device, &count, processes) == NVML_SUCCESS;
    return known ? count : 0;
}
