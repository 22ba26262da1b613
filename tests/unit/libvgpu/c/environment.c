/* SPDX-License-Identifier: Apache-2.0
 *
 * Stands for another thread that sets a variable while the driver starts: preloaded, it does so when the driver reads
 * what the library shows it.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

char *getenv(const char *name) {
    static bool done;
    size_t length = strlen(name);
    for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
        if (strncmp(*entry, name, length) != 0 || (*entry)[length] != '=')
            continue;
        if (!done && strncmp(*entry, "CUDA_VISIBLE_DEVICES=GPU-", 25) == 0) {
            done = true;
            setenv("SET_MEANWHILE", "yes", 1);
            return getenv(name);
        }
        return *entry + length + 1;
    }
    return NULL;
}
