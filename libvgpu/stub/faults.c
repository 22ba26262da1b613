/* SPDX-License-Identifier: Apache-2.0
 *
 * Failure injection: let the nth call of a driver function fail with a code of one's choice, to see what is left
 * behind.
 *
 * VGPU_STUB_FAULTS=cuMemAlloc_v2:3:2,cuCtxCreate_v2:1:2 arms faults of one process (read by its first driver call): the
 * 3rd cuMemAlloc_v2 and the first cuCtxCreate_v2 fail with 2. Function * counts all driver calls together. Faults can
 * also stand in a card's file (card.h: stub_fault), where they count the calls of all processes on that card.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

bool faults_from_environment, calls_itself;

static struct stub_fault own[STUB_FAULTS];
static int own_count;

static void read_environment(void) {
    const char *text = getenv("VGPU_STUB_FAULTS");
    while (text && *text && own_count < STUB_FAULTS) {
        const char *end = strchr(text, ',');
        size_t length = end ? (size_t)(end - text) : strlen(text);
        const char *first = memchr(text, ':', length);
        if (first && (size_t)(first - text) < sizeof own[0].function) {
            struct stub_fault *fault = &own[own_count++];
            memcpy(fault->function, text, (size_t)(first - text));
            char *rest;
            fault->nth = strtoull(first + 1, &rest, 10);
            fault->result = *rest == ':' ? atoi(rest + 1) : CUDA_ERROR_UNKNOWN;
            fault->armed = 1;
        }
        text = end ? end + 1 : NULL;
    }
    __atomic_store_n(&faults_from_environment, own_count > 0, __ATOMIC_RELEASE);
}

void *as_a_program_finds(const char *symbol) {
    return dlsym(RTLD_DEFAULT, symbol);
}

__attribute__((constructor)) static void start(void) {
    read_environment();
    calls_itself = getenv("VGPU_STUB_CALLS_ITSELF") != NULL;
}

bool faults_armed_on_cards(void) {
    for (int i = 0; i < driver.device_count; i++)
        if (LOAD_RELAXED(driver.devices[i].card.shared->fault_count))
            return true;
    return false;
}

/* Counts this call; is it the one that shall fail? */
static bool count_call(struct stub_fault *fault, const char *function, CUresult *result) {
    if (!LOAD(fault->armed))
        return false;
    if (strcmp(fault->function, "*") != 0 && strncmp(fault->function, function, sizeof fault->function) != 0)
        return false;
    if (__atomic_add_fetch(&fault->seen, 1, __ATOMIC_RELAXED) != fault->nth)
        return false;
    *result = (CUresult)fault->result;
    return true;
}

bool faults_hit(const char *function, CUresult *result) {
    bool hit = false;
    for (int i = 0; i < own_count; i++)
        hit |= count_call(&own[i], function, result);
    for (int i = 0; i < driver.device_count; i++) {
        struct stub_card *shared = driver.devices[i].card.shared;
        for (uint32_t j = 0; LOAD_RELAXED(shared->fault_count) && j < STUB_FAULTS; j++)
            hit |= count_call(&shared->faults[j], function, result);
    }
    return hit;
}
