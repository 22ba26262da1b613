/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls that must succeed: else the program says which one did not, with its error, and ends.
 */
#ifndef VGPU_TESTS_MUST_H
#define VGPU_TESTS_MUST_H

#include "abi/cuda.h"

#include <stdio.h>
#include <stdlib.h>

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        CUresult must_result = (call);                                                                                 \
        if (must_result != CUDA_SUCCESS) {                                                                             \
            fprintf(stderr, "%s: %d\n", #call, must_result);                                                           \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
