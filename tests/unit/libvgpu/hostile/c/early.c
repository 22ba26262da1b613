/* SPDX-License-Identifier: Apache-2.0 */
/* A library that starts the driver as soon as it is loaded. */
#include "abi/cuda.h"

__attribute__((constructor)) static void start(void) {
    cuInit(0);
}
