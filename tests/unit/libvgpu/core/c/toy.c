/* SPDX-License-Identifier: Apache-2.0
 *
 * A second driver API on the core, as small as one can be: a table of the driver's functions, and a hook for each of
 * them. The driver is a bank of so many bytes that counts for itself, and fails when it is told to.
 *
 *     toy UUID FAIL_EVERY     takes what it can get, gives half of it back, says how much the driver counts, and waits
 */
#include "core/ptrmap.h"
#include "core/quota.h"
#include "core/share.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum toy_result { TOY_OK = 0, TOY_OUT_OF_MEMORY = 1, TOY_BROKEN = 2, TOY_REFUSED = 3 };

/* ---- The driver ---- */

enum { BLOCKS = 4096 };

static struct {
    uint64_t bytes[BLOCKS]; /* by handle */
    uint64_t sum;
    unsigned long calls, fail_every;
} bank;

static enum toy_result bank_open(unsigned *handle, uint64_t bytes) {
    if (bank.fail_every != 0 && ++bank.calls % bank.fail_every == 0)
        return TOY_BROKEN;
    for (unsigned i = 1; i < BLOCKS; i++) {
        if (bank.bytes[i] != 0)
            continue;
        bank.bytes[ *handle = i] = bytes;
        bank.sum += bytes;
        return TOY_OK;
    }
    return TOY_OUT_OF_MEMORY;
}

static enum toy_result bank_close(unsigned handle) {
    if (bank.fail_every != 0 && ++bank.calls % bank.fail_every == 0)
        return TOY_BROKEN;
    bank.sum -= bank.bytes[handle];
    bank.bytes[handle] = 0;
    return TOY_OK;
}

static const struct {
    enum toy_result (*open)(unsigned *handle, uint64_t bytes);
    enum toy_result (*close)(unsigned handle);
} real = {bank_open, bank_close};

/* ---- The front-end: reserve, then ask the driver ---- */

enum { KIND_BLOCK = 1 };

static struct vgpu_device *device;

static enum toy_result toy_open(unsigned *handle, uint64_t bytes) {
    if (device == NULL)
        return TOY_REFUSED;
    if (vgpu_reserve(device, bytes) != VGPU_OK)
        return TOY_OUT_OF_MEMORY;
    enum toy_result result = real.open(handle, bytes);
    struct vgpu_charge replaced, charge = {.kind = KIND_BLOCK, .bytes = bytes, .device = device};
    charge.key = result == TOY_OK ? *handle : 0;
    if (result != TOY_OK)
        vgpu_credit(device, bytes);
    else
        vgpu_ptrmap_put(&charge, &replaced);
    return result;
}

static enum toy_result toy_close(unsigned handle) {
    struct vgpu_charge charge, replaced;
    bool known = vgpu_ptrmap_take(handle, KIND_BLOCK, &charge);
    enum toy_result result = real.close(handle);
    if (known && result == TOY_OK)
        vgpu_credit(charge.device, charge.bytes);
    else if (known)
        vgpu_ptrmap_put(&charge, &replaced);
    return result;
}

/* ---- A program of that API ---- */

int main(int argc, char **argv) {
    static unsigned handles[BLOCKS];
    unsigned count = 0;
    enum toy_result result = TOY_OK;
    struct vgpu_process *process = vgpu_process();
    if (argc != 3 || process == NULL)
        return 1;
    device = vgpu_device_by_uuid(process, argv[1]);
    bank.fail_every = strtoul(argv[2], NULL, 10);
    for (uint64_t bytes = 1; result != TOY_OUT_OF_MEMORY && result != TOY_REFUSED && count < BLOCKS; bytes++)
        if ((result = toy_open(&handles[count], bytes * 1009)) == TOY_OK)
            count++;
    for (unsigned i = 0; i < count; i += 2)
        while (toy_close(handles[i]) == TOY_BROKEN)
            continue;
    printf("%d %" PRIu64 "\n", (int)result, bank.sum);
    fflush(stdout);
    return getchar() == EOF ? 0 : 2;
}
