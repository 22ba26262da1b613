/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of the stub's NVML: it only looks at the cards' files, and never changes them. */
#ifndef VGPU_STUB_NVML_INSIDE_H
#define VGPU_STUB_NVML_INSIDE_H

#include "abi/nvml.h"
#include "cards.h"

#define EXPORT __attribute__((visibility("default")))

struct nvmlDevice_st {
    struct card card;
    unsigned index;
};

#define REQUIRE(condition, otherwise)                                                                                  \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return (otherwise);                                                                                        \
    } while (0)
#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        nvmlReturn_t try_result_ = (expression);                                                                       \
        if (try_result_ != NVML_SUCCESS)                                                                               \
            return try_result_;                                                                                        \
    } while (0)

/* Is NVML started, and this a device of it? */
nvmlReturn_t check_device(nvmlDevice_t device);
nvmlReturn_t check_started(void);
/* Copies a text with its end, or says that the room is too small. */
nvmlReturn_t give_text(char *to, unsigned length, const char *text);

/* The parts of a card (MIG), in order, and the card of a part. NULL: there is none. */
nvmlDevice_t part_of(nvmlDevice_t device, unsigned index);
nvmlDevice_t parent_of(nvmlDevice_t part);

#endif
