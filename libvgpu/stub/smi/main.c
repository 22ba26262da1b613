/* SPDX-License-Identifier: Apache-2.0 */
/* The stub's nvidia-smi: the table, -L, and queries. */
#include "smi/smi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    bool list, header, units, csv;
    int only;
    const char *gpu_fields, *process_fields;
};

static void print_help(void) {
    puts("NVIDIA System Management Interface, of the stub driver: simulated GPUs.\n\n"
         "nvidia-smi                                   the table\n"
         "nvidia-smi -L                                the GPUs and their UUIDs\n"
         "nvidia-smi -i INDEX ...                      one GPU only\n"
         "nvidia-smi --query-gpu=FIELDS --format=csv[,noheader][,nounits]\n"
         "nvidia-smi --query-compute-apps=FIELDS --format=csv[,noheader][,nounits]");
}

/* The value of "--name=value" or "--name value"; NULL if this argument is another one. */
static const char *value_of(const char *name, char **arguments, int *at) {
    size_t length = strlen(name);
    if (strncmp(arguments[*at], name, length) != 0)
        return NULL;
    if (arguments[*at][length] == '=')
        return arguments[*at] + length + 1;
    return arguments[*at][length] == 0 && arguments[*at + 1] ? arguments[++*at] : NULL;
}

static void parse_format(const char *format, struct options *options) {
    options->csv = strncmp(format, "csv", 3) == 0;
    options->header = !strstr(format, "noheader");
    options->units = !strstr(format, "nounits");
}

static bool parse(char **arguments, struct options *options) {
    for (int i = 1; arguments[i]; i++) {
        const char *value;
        if (!strcmp(arguments[i], "-L") || !strcmp(arguments[i], "--list-gpus"))
            options->list = true;
        else if ((value = value_of("-i", arguments, &i)) || (value = value_of("--id", arguments, &i)))
            options->only = atoi(value);
        else if ((value = value_of("--query-gpu", arguments, &i)))
            options->gpu_fields = value;
        else if ((value = value_of("--query-compute-apps", arguments, &i)))
            options->process_fields = value;
        else if ((value = value_of("--format", arguments, &i)))
            parse_format(value, options);
        else {
            printf("Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n");
            return false;
        }
    }
    if ((options->gpu_fields || options->process_fields) && !options->csv) {
        printf("\"--format=\" switch is missing. Please run 'nvidia-smi -h' for help.\n");
        return false;
    }
    return true;
}

int main(int count, char **arguments) {
    static struct report report;
    struct options options = {.header = true, .units = true, .only = -1};
    if (count > 1 && (!strcmp(arguments[1], "-h") || !strcmp(arguments[1], "--help"))) {
        print_help();
        return 0;
    }
    if (!parse(arguments, &options))
        return 2;
    if (!report_read(&report, options.only))
        return 9;
    int status = 0;
    if (options.list)
        print_list(&report);
    else if (options.gpu_fields)
        status = query_gpus(&report, options.gpu_fields, options.header, options.units);
    else if (options.process_fields)
        status = query_processes(&report, options.process_fields, options.header, options.units);
    else
        print_table(&report);
    report.nvml.nvmlShutdown();
    return status;
}
