/* SPDX-License-Identifier: Apache-2.0
 *
 * The few lines that a C test of this folder needs: cases by name, and a check that says what it found.
 */
#ifndef VGPU_TEST_CHECK_H
#define VGPU_TEST_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(found, expected)                                                                                         \
    do {                                                                                                               \
        long long check_found = (long long)(found), check_expected = (long long)(expected);                            \
        if (check_found != check_expected) {                                                                           \
            fprintf(stderr, "%s:%d: %s: found %lld, expected %lld\n", __FILE__, __LINE__, #found, check_found,         \
                    check_expected);                                                                                   \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

struct test_case {
    const char *name;
    void (*run)(void);
};

/* Without arguments: print the names. With one: run that case. */
static inline int run_cases(const struct test_case *cases, size_t count, int argc, char **argv) {
    for (size_t i = 0; i < count; i++) {
        if (argc < 2)
            puts(cases[i].name);
        else if (strcmp(cases[i].name, argv[1]) == 0) {
            cases[i].run();
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}

#endif
