/* SPDX-License-Identifier: Apache-2.0
 *
 * Blocks: where granularity_bytes is set, allocations of up to half of it lie together in blocks of that size, one
 * context's apart from another's. A block is taken when nothing has a place in those that there are (first fit), and
 * goes with the last allocation in it. So do drivers with 2 MiB, as far as it can be seen from outside: free memory
 * falls in steps of 2 MiB, and allocations in between have neighbouring addresses. Here they begin at whole pages, so
 * that a file can be put behind any; there every 512 bytes.
 */
#include "driver.h"

#include <stdlib.h>
#include <string.h>

#define PAGE 4096

struct block {
    struct allocation range; /* its addresses */
    struct block *next;      /* of the context */
    size_t page_count, pages_used;
    struct allocation *pages[]; /* what lies on each; NULL: free */
};

static size_t pages_of(size_t bytes) {
    return (bytes + PAGE - 1) / PAGE;
}

bool blocks_have(const struct device *device, size_t bytes) {
    uint64_t block_bytes = device->card.shared->granularity_bytes;
    return block_bytes > 2 * PAGE && bytes <= block_bytes / 2;
}

/* The first of `count` free pages in a row; page_count if there are none. */
static size_t find_free(const struct block *block, size_t count) {
    size_t row = 0;
    for (size_t page = 0; page < block->page_count && block->pages_used + count <= block->page_count; page++) {
        row = block->pages[page] ? 0 : row + 1;
        if (row == count)
            return page + 1 - count;
    }
    return block->page_count;
}

bool block_put(struct allocation *record) {
    size_t count = pages_of(record->size);
    for (struct block *block = record->context->blocks; block; block = block->next) {
        size_t first = find_free(block, count);
        if (first == block->page_count)
            continue;
        for (size_t page = first; page < first + count; page++)
            block->pages[page] = record;
        block->pages_used += count;
        record->block = block;
        record->arena = block->range.arena;
        record->base = block->range.base + first * PAGE;
        return true;
    }
    return false;
}

bool block_add(CUcontext context) {
    size_t bytes = context->device->card.shared->granularity_bytes, page_count = bytes / PAGE;
    struct block *block = calloc(1, sizeof *block + page_count * sizeof *block->pages);
    if (!block)
        return false;
    block->page_count = page_count;
    block->range = (struct allocation){.kind = ALLOCATION_BLOCK, .size = bytes, .block = block};
    if (!arena_take(ARENA_DEVICE, bytes, true, &block->range)) {
        free(block);
        return false;
    }
    block->next = context->blocks;
    context->blocks = block;
    return true;
}

struct allocation *block_part(const struct block *block, CUdeviceptr address) {
    return block->pages[(address - block->range.base) / PAGE];
}

uint64_t block_take_out(struct allocation *record) {
    struct block *block = record->block, **link = &record->context->blocks;
    size_t first = (record->base - block->range.base) / PAGE, count = pages_of(record->size);
    memset(&block->pages[first], 0, count * sizeof *block->pages);
    block->pages_used -= count;
    arena_drop_pages(record);
    if (block->pages_used > 0)
        return 0;
    while (*link != block)
        link = &(*link)->next;
    *link = block->next;
    uint64_t bytes = block->range.size;
    arena_give(&block->range);
    free(block);
    return bytes;
}
