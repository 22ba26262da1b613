/* SPDX-License-Identifier: Apache-2.0 */
#include "preload/libc.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct search {
    const char *name;
    void *found;
};

struct symbols {
    const char *strings;
    const ElfW(Sym) * table;
    const ElfW(Half) * versions;
    const uint32_t *gnu_hash;
    const uint32_t *sysv_hash;
    ElfW(Addr) soname;
};

static void read_dynamic(const struct dl_phdr_info *object, const ElfW(Dyn) * dynamic, struct symbols *symbols) {
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        /* glibc has relocated these in place; should one still be an offset, it lies below the object. */
        ElfW(Addr) address = dynamic->d_un.d_ptr;
        if (address < object->dlpi_addr)
            address += object->dlpi_addr;
        switch (dynamic->d_tag) {
        case DT_STRTAB:
            symbols->strings = (const char *)address;
            break;
        case DT_SYMTAB:
            symbols->table = (const ElfW(Sym) *)address;
            break;
        case DT_VERSYM:
            symbols->versions = (const ElfW(Half) *)address;
            break;
        case DT_GNU_HASH:
            symbols->gnu_hash = (const uint32_t *)address;
            break;
        case DT_HASH:
            symbols->sysv_hash = (const uint32_t *)address;
            break;
        case DT_SONAME:
            symbols->soname = dynamic->d_un.d_val;
            break;
        default:
            break;
        }
    }
}

/* Number of symbols: the System V table says it; in the GNU table it is where the last chain of the last bucket ends.
 */
static uint32_t count_symbols(const struct symbols *symbols) {
    if (symbols->sysv_hash != NULL)
        return symbols->sysv_hash[1];
    const uint32_t *header = symbols->gnu_hash;
    uint32_t buckets = header[0], first = header[1], bloom_words = header[2], last = 0;
    const uint32_t *bucket = header + 4 + bloom_words * (sizeof(ElfW(Addr)) / 4);
    const uint32_t *chain = bucket + buckets;
    for (uint32_t i = 0; i < buckets; i++)
        last = bucket[i] > last ? bucket[i] : last;
    if (last < first)
        return first;
    while (!(chain[last - first] & 1))
        last++;
    return last + 1;
}

static int look_into(struct dl_phdr_info *object, size_t size, void *data) {
    (void)size;
    struct search *search = data;
    struct symbols symbols = {0};
    for (int i = 0; i < object->dlpi_phnum; i++)
        if (object->dlpi_phdr[i].p_type == PT_DYNAMIC)
            read_dynamic(object, (const ElfW(Dyn) *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr), &symbols);
    if (symbols.strings == NULL || symbols.table == NULL || (symbols.gnu_hash == NULL && symbols.sysv_hash == NULL))
        return 0;
    const char *soname = symbols.strings + symbols.soname;
    if (symbols.soname == 0 || (strcmp(soname, "libc.so.6") != 0 && strcmp(soname, "libdl.so.2") != 0))
        return 0;
    uint32_t count = count_symbols(&symbols);
    for (uint32_t i = 0; i < count; i++) {
        const ElfW(Sym) *symbol = &symbols.table[i];
        if (symbol->st_shndx == SHN_UNDEF || symbol->st_value == 0 || (symbol->st_info & 0xf) != STT_FUNC ||
            strcmp(symbols.strings + symbol->st_name, search->name) != 0)
            continue;
        search->found = (void *)(object->dlpi_addr + symbol->st_value);
        if (symbols.versions == NULL || !(symbols.versions[i] & 0x8000))
            return 1; /* the default version; a hidden one is taken only when there is no other */
    }
    return 0;
}

static void *search_libc(const char *name) {
    struct search search = {.name = name};
    dl_iterate_phdr(look_into, &search);
    return search.found;
}

/* The same answer each time, so threads may race. */
static void *search_once(const char *name, void **found) {
    void *function = __atomic_load_n(found, __ATOMIC_RELAXED);
    if (function == NULL) {
        function = search_libc(name);
        __atomic_store_n(found, function, __ATOMIC_RELAXED);
    }
    return function;
}

vgpu_dlsym_function vgpu__libc_dlsym(void) {
    static void *found;
    return (vgpu_dlsym_function)search_once("dlsym", &found);
}

vgpu_dlvsym_function vgpu__libc_dlvsym(void) {
    static void *found;
    return (vgpu_dlvsym_function)search_once("dlvsym", &found);
}

static void *open_library(const char *library, int flags) {
    static void *found;
    void *(*open_function)(const char *, int) = (void *(*)(const char *, int))search_once("dlopen", &found);
    return open_function != NULL ? open_function(library, flags) : NULL;
}

void *vgpu__libc_loaded(const char *library) {
    return open_library(library, RTLD_LAZY | RTLD_NOLOAD);
}

void (*vgpu__libc_driver_symbol(const char *library, const char *symbol))(void) {
    void *handle = vgpu__libc_loaded(library);
    if (handle == NULL)
        handle = open_library(library, RTLD_LAZY | RTLD_LOCAL);
    vgpu_dlsym_function look_up = vgpu__libc_dlsym();
    return handle != NULL && look_up != NULL ? (void (*)(void))look_up(handle, symbol) : NULL;
}
