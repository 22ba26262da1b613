/* SPDX-License-Identifier: Apache-2.0 */
/* A program with static_runtime.c in it: allocates MiB after MiB until it is refused, and says how many there were. */
#include "abi/cuda.h"

#include <stdio.h>

int runtime_allocate(CUdeviceptr *pointer, size_t bytes);
int runtime_start(void);

int main(void) {
    CUdeviceptr pointer;
    int count = 0, result = runtime_start();
    while (result == 0 && count < 256 && (result = runtime_allocate(&pointer, 1 << 20)) == 0)
        count++;
    printf("%d %d\n", count, result);
    return 0;
}
