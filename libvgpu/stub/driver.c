/* SPDX-License-Identifier: Apache-2.0 */
/* The start of the driver, what a fork does to it, and the names of its errors. */
#include "pools.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct driver driver = {.lock = PTHREAD_MUTEX_INITIALIZER};

/*
 * A fork's child has the parent's memory but not its threads and not its place on the card: it forgets everything and
 * may start again with cuInit. Closing the card files also gives up the child's part in the parent's slot locks.
 */
static void forget_in_child(void) {
    if (driver.ready) {
        for (int i = 0; i < driver.device_count; i++) {
            executor_forget(&driver.devices[i]);
            card_forget(&driver.devices[i].card);
        }
        context_forget_all();
        events_forget_all();
        holdings_forget_all();
        arena_forget_all();
        memories_forget_all();
        pools_forget_all();
        memset(&driver, 0, sizeof driver);
    }
    pthread_mutex_init(&driver.lock,
                       NULL); /* held since lock_for_fork, in a child that has not started the driver too */
    pthread_mutex_init(&memory_lock, NULL);
    handles_forget_all();
}

static void lock_for_fork(void) {
    pthread_mutex_lock(&driver.lock);
    pthread_mutex_lock(&memory_lock);
}

static void unlock_after_fork(void) {
    pthread_mutex_unlock(&memory_lock);
    pthread_mutex_unlock(&driver.lock);
}

/* CUDA_VISIBLE_DEVICES: numbers, or UUIDs or the start of one, up to the first that means no card; an empty list, or
 * one that begins with such an entry, hides all. (CUDA programming guide, environment variables.) */
static int choose_visible(struct card *found, int count) {
    const char *entry = getenv("CUDA_VISIBLE_DEVICES");
    struct card chosen[CARDS_MAX];
    bool taken[CARDS_MAX] = {false};
    int kept = 0;
    if (!entry)
        return count;
    while (*entry) {
        size_t length = strcspn(entry, ",");
        char *end;
        long number = strtol(entry, &end, 10);
        int card = end == entry + length && length > 0 && number >= 0 && number < count ? (int)number : -1;
        for (int i = 0; length > 4 && card < 0 && i < count; i++)
            if (strncasecmp(found[i].shared->uuid, entry, length) == 0)
                card = i;
        if (card < 0 || taken[card])
            break;
        taken[card] = true;
        chosen[kept++] = found[card];
        entry += length + (entry[length] == ',');
    }
    for (int i = 0; i < count; i++)
        if (!taken[i])
            cards_close(&found[i], 1);
    memcpy(found, chosen, (size_t)kept * sizeof *chosen);
    return kept;
}

/* What can be used of the cards that were found: the parts of one in MIG mode, and not itself. */
static int without_divided(struct card *found, int count) {
    int kept = 0;
    for (int i = 0; i < count; i++) {
        if (found[i].shared->mig_mode)
            cards_close(&found[i], 1);
        else
            found[kept++] = found[i];
    }
    return kept;
}

CUresult stub_cuInit(unsigned flags) {
    REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&driver.lock);
    if (!driver.ready) {
        static bool fork_handled;
        static struct card found[CARDS_MAX];
        int count = choose_visible(found, without_divided(found, cards_open(found, true)));
        for (int i = 0; i < count; i++)
            driver.devices[i] = (struct device){.card = found[i], .ordinal = i};
        driver.device_count = count;
        if (!fork_handled)
            fork_handled = pthread_atfork(lock_for_fork, unlock_after_fork, forget_in_child) == 0;
        if (count == 0)
            result = CUDA_ERROR_NO_DEVICE;
        else
            __atomic_store_n(&driver.ready, true, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&driver.lock);
    return result;
}

CUresult device_of(CUdevice ordinal, struct device **device) {
    REQUIRE(__atomic_load_n(&driver.ready, __ATOMIC_ACQUIRE), CUDA_ERROR_NOT_INITIALIZED);
    REQUIRE(ordinal >= 0 && ordinal < driver.device_count, CUDA_ERROR_INVALID_DEVICE);
    *device = &driver.devices[ordinal];
    return CUDA_SUCCESS;
}

CUresult device_join(struct device *device) {
    if (device->joined)
        return CUDA_SUCCESS;
    REQUIRE(device->card.slot || card_join(&device->card), CUDA_ERROR_DEVICE_UNAVAILABLE);
    TRY(executor_start(device));
    device->joined = true;
    return CUDA_SUCCESS;
}

CUresult stub_cuDriverGetVersion(int *version) {
    REQUIRE(version, CUDA_ERROR_INVALID_VALUE);
    bool known = driver.ready && driver.device_count > 0;
    *version = known ? (int)driver.devices[0].card.shared->cuda_version : STUB_CUDA_VERSION_FALLBACK;
    return CUDA_SUCCESS;
}

CUresult stub_cuGetErrorName(CUresult error, const char **name) {
    REQUIRE(name, CUDA_ERROR_INVALID_VALUE);
    *name = NULL;
    switch (error) {
#define X(error_name, value, text)                                                                                     \
    case error_name:                                                                                                   \
        *name = #error_name;                                                                                           \
        break;
        ABI_CURESULTS(X)
#undef X
    }
    return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult stub_cuGetErrorString(CUresult error, const char **text) {
    REQUIRE(text, CUDA_ERROR_INVALID_VALUE);
    *text = NULL;
    switch (error) {
#define X(error_name, value, error_text)                                                                               \
    case error_name:                                                                                                   \
        *text = error_text;                                                                                            \
        break;
        ABI_CURESULTS(X)
#undef X
    }
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* The real driver hands private tables to its own runtime here: their size, then functions. Here is one of them, with
 * the one function by which the runtime gets at primary contexts (seen of libcudart 11.8 to 13.5). */
CUresult stub_cuGetExportTable(const void **table, const CUuuid *id) {
    static const unsigned char runtime[16] = {0x6b, 0xd5, 0xfb, 0x6c, 0x5b, 0xf4, 0xe7, 0x4a,
                                              0x89, 0x87, 0xd9, 0x39, 0x12, 0xfd, 0x9d, 0xf9};
    static const void *const functions[] = {(void *)(3 * sizeof(void *)), NULL, (void *)stub_cuDevicePrimaryCtxRetain};
    REQUIRE(table && id, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(memcmp(id, runtime, sizeof runtime) == 0, CUDA_ERROR_NOT_FOUND);
    *table = functions;
    return CUDA_SUCCESS;
}
