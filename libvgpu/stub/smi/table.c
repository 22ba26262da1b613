/* SPDX-License-Identifier: Apache-2.0 */
/* The table that people know, and the list of -L. */
#include "smi/smi.h"

#include <stdio.h>
#include <string.h>

#define WIDE  "+-----------------------------------------------------------------------------------------+"
#define THREE "+-----------------------------------------+------------------------+----------------------+"

static void print_head(const struct report *report) {
    char cuda[16];
    snprintf(cuda, sizeof cuda, "%d.%d", report->cuda_version / 1000, report->cuda_version % 1000 / 10);
    puts(WIDE);
    printf("| NVIDIA-SMI %-22s Driver Version: %-14s CUDA Version: %-8s |\n", report->driver_version,
           report->driver_version, cuda);
    puts(THREE);
    puts("| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |");
    puts("| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |");
    puts("|                                         |                        |               MIG M. |");
    puts("|=========================================+========================+======================|");
}

static void print_gpu(const struct gpu *gpu) {
    char power[32], memory[32], load[16];
    snprintf(power, sizeof power, "%uW / %uW", gpu->milliwatts / 1000, gpu->limit_milliwatts / 1000);
    snprintf(memory, sizeof memory, "%uMiB / %uMiB", mib(gpu->memory.used), mib(gpu->memory.total));
    snprintf(load, sizeof load, "%u%%", gpu->utilization.gpu);
    printf("| %3u  %-27.27s    On  |   %16s Off |                  N/A |\n", gpu->index, gpu->name, gpu->pci.busId);
    printf("| N/A  %3uC    P0 %23s | %22s | %7s      Default |\n", gpu->celsius, power, memory, load);
    printf("|                                         |                        | %20s |\n",
           gpu->mig ? "Enabled" : "Disabled");
    puts(THREE);
}

static unsigned print_processes_of(const struct report *report, const struct gpu *gpu) {
    static nvmlProcessInfo_t processes[SMI_PROCESSES_MAX];
    unsigned count = report_processes(report, gpu, processes);
    for (unsigned i = 0; i < count; i++) {
        char name[256] = "[Not Found]", used[32];
        report->nvml.nvmlSystemGetProcessName(processes[i].pid, name, sizeof name);
        size_t length = strlen(name);
        const char *tail = length > 36 ? name + length - 36 : name;
        snprintf(used, sizeof used, "%uMiB", mib(processes[i].usedGpuMemory));
        printf("|%5u   N/A  N/A %16u      C   %-36s %8s |\n", gpu->index, processes[i].pid, tail, used);
    }
    return count;
}

void print_table(const struct report *report) {
    print_head(report);
    for (unsigned i = 0; i < report->count; i++)
        print_gpu(&report->gpus[i]);
    putchar('\n');
    puts(WIDE);
    puts("| Processes:                                                                              |");
    puts("|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |");
    puts("|        ID   ID                                                               Usage      |");
    puts("|=========================================================================================|");
    unsigned processes = 0;
    for (unsigned i = 0; i < report->count; i++)
        processes += print_processes_of(report, &report->gpus[i]);
    if (processes == 0)
        puts("|  No running processes found                                                             |");
    puts(WIDE);
}

void print_list(const struct report *report) {
    for (unsigned i = 0; i < report->count; i++)
        printf("GPU %u: %s (UUID: %s)\n", report->gpus[i].index, report->gpus[i].name, report->gpus[i].uuid);
}
