/* SPDX-License-Identifier: Apache-2.0 */
/* --query-gpu and --query-compute-apps: comma-separated values of chosen fields. */
#include "smi/smi.h"

#include <stdio.h>
#include <string.h>

/* One row: a GPU, and for --query-compute-apps a process on it. */
struct row {
    const struct report *report;
    const struct gpu *gpu;
    const nvmlProcessInfo_t *process;
};

struct field {
    const char *name, *other_name, *unit;
    void (*print)(const struct row *row);
};

#define FIELD(function, format, ...)                                                                                   \
    static void function(const struct row *row) {                                                                      \
        printf(format, __VA_ARGS__);                                                                                   \
    }

FIELD(put_name, "%s", row->gpu->name)
FIELD(put_uuid, "%s", row->gpu->uuid)
FIELD(put_serial, "%s", row->gpu->serial)
FIELD(put_index, "%u", row->gpu->index)
FIELD(put_count, "%u", row->report->count)
FIELD(put_driver, "%s", row->report->driver_version)
FIELD(put_bus, "%s", row->gpu->pci.busId)
FIELD(put_total, "%u", mib(row->gpu->memory.total))
FIELD(put_used, "%u", mib(row->gpu->memory_v2.used))
FIELD(put_free, "%u", mib(row->gpu->memory.free))
FIELD(put_reserved, "%u", mib(row->gpu->memory_v2.reserved))
FIELD(put_load, "%u", row->gpu->utilization.gpu)
FIELD(put_memory_load, "%u", row->gpu->utilization.memory)
FIELD(put_celsius, "%u", row->gpu->celsius)
FIELD(put_power, "%.2f", row->gpu->milliwatts / 1e3)
FIELD(put_power_limit, "%.2f", row->gpu->limit_milliwatts / 1e3)
FIELD(put_capability, "%d.%d", row->gpu->capability[0], row->gpu->capability[1])
FIELD(put_mig, "%s", row->gpu->mig ? "Enabled" : "Disabled")

static const struct field gpu_fields[] = {
    {"name", "gpu_name", NULL, put_name},
    {"uuid", "gpu_uuid", NULL, put_uuid},
    {"serial", "gpu_serial", NULL, put_serial},
    {"index", NULL, NULL, put_index},
    {"count", NULL, NULL, put_count},
    {"driver_version", NULL, NULL, put_driver},
    {"pci.bus_id", "gpu_bus_id", NULL, put_bus},
    {"memory.total", NULL, "MiB", put_total},
    {"memory.used", NULL, "MiB", put_used},
    {"memory.free", NULL, "MiB", put_free},
    {"memory.reserved", NULL, "MiB", put_reserved},
    {"utilization.gpu", NULL, "%", put_load},
    {"utilization.memory", NULL, "%", put_memory_load},
    {"temperature.gpu", NULL, NULL, put_celsius},
    {"power.draw", NULL, "W", put_power},
    {"power.limit", NULL, "W", put_power_limit},
    {"compute_cap", NULL, NULL, put_capability},
    {"mig.mode.current", NULL, NULL, put_mig},
    {0},
};

FIELD(put_pid, "%u", row->process->pid)
FIELD(put_process_memory, "%u", mib(row->process->usedGpuMemory))

static void put_process_name(const struct row *row) {
    char name[256] = "[Not Found]";
    row->report->nvml.nvmlSystemGetProcessName(row->process->pid, name, sizeof name);
    fputs(name, stdout);
}

static const struct field process_fields[] = {
    {"pid", NULL, NULL, put_pid},
    {"process_name", "name", NULL, put_process_name},
    {"used_memory", "used_gpu_memory", "MiB", put_process_memory},
    {"gpu_uuid", NULL, NULL, put_uuid},
    {"gpu_name", NULL, NULL, put_name},
    {"gpu_bus_id", NULL, NULL, put_bus},
    {0},
};

enum { FIELDS_MAX = 64 };

struct query {
    const struct field *fields[FIELDS_MAX];
    unsigned count;
    bool units;
};

static const struct field *find(const struct field *known, const char *name, size_t length) {
    for (; known->name; known++)
        if ((strlen(known->name) == length && strncmp(known->name, name, length) == 0) ||
            (known->other_name && strlen(known->other_name) == length && strncmp(known->other_name, name, length) == 0))
            return known;
    return NULL;
}

static bool parse(const struct field *known, const char *text, struct query *query) {
    while (*text && query->count < FIELDS_MAX) {
        size_t length = strcspn(text, ",");
        const struct field *field = find(known, text, length);
        if (!field) {
            printf("Field \"%.*s\" is not a valid field to query.\n\n", (int)length, text);
            return false;
        }
        query->fields[query->count++] = field;
        text += length + (text[length] == ',');
    }
    return query->count > 0;
}

static void print_header(const struct query *query) {
    for (unsigned i = 0; i < query->count; i++) {
        const struct field *field = query->fields[i];
        printf("%s%s", i ? ", " : "", field->name);
        if (field->unit)
            printf(" [%s]", field->unit);
    }
    putchar('\n');
}

static void print_row(const struct query *query, const struct row *row) {
    for (unsigned i = 0; i < query->count; i++) {
        const struct field *field = query->fields[i];
        fputs(i ? ", " : "", stdout);
        field->print(row);
        if (field->unit && query->units)
            printf(" %s", field->unit);
    }
    putchar('\n');
}

enum { INVALID_ARGUMENT = 2 }; /* as the real program exits */

int query_gpus(const struct report *report, const char *fields, bool header, bool units) {
    struct query query = {.units = units};
    if (!parse(gpu_fields, fields, &query))
        return INVALID_ARGUMENT;
    if (header)
        print_header(&query);
    for (unsigned i = 0; i < report->count; i++)
        print_row(&query, &(struct row){report, &report->gpus[i], NULL});
    return 0;
}

int query_processes(const struct report *report, const char *fields, bool header, bool units) {
    static nvmlProcessInfo_t processes[SMI_PROCESSES_MAX];
    struct query query = {.units = units};
    if (!parse(process_fields, fields, &query))
        return INVALID_ARGUMENT;
    if (header)
        print_header(&query);
    for (unsigned i = 0; i < report->count; i++) {
        unsigned count = report_processes(report, &report->gpus[i], processes);
        for (unsigned j = 0; j < count; j++)
            print_row(&query, &(struct row){report, &report->gpus[i], &processes[j]});
    }
    return 0;
}
