/* SPDX-License-Identifier: Apache-2.0 */
/* A linked program that asks the driver for functions. Prints the results. */
#include "abi/cuda.h"

#include <stdio.h>

int main(void) {
    void *found;
    CUdriverProcAddressQueryResult status;
    int first = cuGetProcAddress("cuInit", &found, 11030, 0);
    printf("%d %d\n", first, cuGetProcAddress_v2("cuInit", &found, 12000, 0, &status));
    return 0;
}
