/* SPDX-License-Identifier: Apache-2.0
 *
 * Entry points that would show what the neighbours do: load of engines that no share divides, processes, traffic,
 * address space. Both ABIs that we build for let a function ignore its arguments, so none is declared here.
 */
#include "nvml/refused.h"

#include <stddef.h>
#include <string.h>

enum { NOT_SUPPORTED = 3 }; /* NVML_ERROR_NOT_SUPPORTED */

#define HOOK(symbol)
#define REFUSED(symbol)                                                                                                \
    __attribute__((visibility("default"))) int symbol(void);                                                           \
    int symbol(void) {                                                                                                 \
        return NOT_SUPPORTED;                                                                                          \
    }
#include "nvml/hooks.def"
#undef REFUSED

static const struct {
    const char *symbol;
    void (*function)(void);
} refused[] = {
#define REFUSED(symbol) {#symbol, (void (*)(void))symbol},
#include "nvml/hooks.def"
};

void (*vgpu__nvml_refused(const char *symbol))(void) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (strcmp(refused[i].symbol, symbol) == 0)
            return refused[i].function;
    return NULL;
}
