/* SPDX-License-Identifier: Apache-2.0 */
#include "preload/libc.h"

#include "core/clock.h"
#include "core/origin.h"

#include <dlfcn.h>
#include <elf.h>
#include <limits.h>
#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* Everything up to vgpu__libc_function runs inside somebody's very first dlsym, e.g. while a sanitizer looks for the
 * functions that it will intercept: it calls no function of the C library. */

static bool same(const char *a, const char *b) {
    while (*a != '\0' && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

struct symbols {
    ElfW(Addr) base;
    const char *strings;
    const ElfW(Sym) * table;
    const ElfW(Half) * versions;
    const uint32_t *gnu_hash;
    const char *soname;
};

/* The loader has relocated these in place; should one still be an offset, it lies below the object. */
static const void *address_of(ElfW(Addr) base, const ElfW(Dyn) * entry) {
    ElfW(Addr) address = entry->d_un.d_ptr;
    return (const void *)(address < base ? address + base : address);
}

/* False: the object has no table that we can search. */
static bool read_dynamic(ElfW(Addr) base, const ElfW(Dyn) * dynamic, struct symbols *symbols) {
    const ElfW(Dyn) *soname = NULL;
    *symbols = (struct symbols){.base = base, .soname = ""};
    for (const ElfW(Dyn) *entry = dynamic; entry != NULL && entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag == DT_STRTAB)
            symbols->strings = address_of(base, entry);
        else if (entry->d_tag == DT_SYMTAB)
            symbols->table = address_of(base, entry);
        else if (entry->d_tag == DT_VERSYM)
            symbols->versions = address_of(base, entry);
        else if (entry->d_tag == DT_GNU_HASH)
            symbols->gnu_hash = address_of(base, entry);
        else if (entry->d_tag == DT_SONAME)
            soname = entry;
    }
    if (symbols->strings == NULL || symbols->table == NULL || symbols->gnu_hash == NULL)
        return false;
    if (soname != NULL)
        symbols->soname = symbols->strings + soname->d_un.d_val;
    return true;
}

static uint32_t hash_of(const char *name) {
    uint32_t hash = 5381;
    for (; *name != '\0'; name++)
        hash = hash * 33 + (unsigned char)*name;
    return hash;
}

/* The symbol of this name and type in its default version, else in any. */
static const ElfW(Sym) * find_symbol(const struct symbols *symbols, const char *name, int type) {
    const uint32_t *header = symbols->gnu_hash; /* buckets, first symbol, bloom words, bloom shift */
    const uint32_t *bucket = header + 4 + header[2] * (sizeof(ElfW(Addr)) / 4);
    const uint32_t *chain = bucket + header[0];
    uint32_t hash = hash_of(name), i = bucket[hash % header[0]];
    const ElfW(Sym) *found = NULL;
    if (i < header[1])
        return NULL;
    for (bool last = false; !last; i++) {
        const ElfW(Sym) *symbol = &symbols->table[i];
        last = chain[i - header[1]] & 1;
        if ((chain[i - header[1]] | 1) != (hash | 1) || symbol->st_shndx == SHN_UNDEF ||
            (symbol->st_info & 0xf) != type || !same(symbols->strings + symbol->st_name, name))
            continue;
        found = symbol;
        if (symbols->versions == NULL || !(symbols->versions[i] & 0x8000)) /* not a hidden, old version */
            break;
    }
    return found;
}

static void *find_function(const struct symbols *symbols, const char *name) {
    const ElfW(Sym) *symbol = find_symbol(symbols, name, STT_FUNC);
    return symbol != NULL ? (void *)(symbols->base + symbol->st_value) : NULL;
}

static void *search_libc(const char *name) {
    void *found = NULL;
    for (const struct link_map *object = _r_debug.r_map; object != NULL && found == NULL; object = object->l_next) {
        struct symbols symbols;
        if (read_dynamic(object->l_addr, object->l_ld, &symbols) &&
            (same(symbols.soname, "libc.so.6") || same(symbols.soname, "libdl.so.2")))
            found = find_function(&symbols, name);
    }
    return found;
}

/* The same answer each time, so threads may race. */
void *vgpu__libc_function(const char *name, void **found) {
    void *function = __atomic_load_n(found, __ATOMIC_RELAXED);
    if (function == NULL) {
        function = search_libc(name);
        __atomic_store_n(found, function, __ATOMIC_RELAXED);
    }
    return function;
}

vgpu_dlsym_function vgpu__libc_dlsym(void) {
    static void *found;
    return (vgpu_dlsym_function)vgpu__libc_function("dlsym", &found);
}

vgpu_dlvsym_function vgpu__libc_dlvsym(void) {
    static void *found;
    return (vgpu_dlvsym_function)vgpu__libc_function("dlvsym", &found);
}

void vgpu__libc_use_clock(void) {
    static void *gettime, *nanosleep;
    vgpu_gettime_function own_gettime = (vgpu_gettime_function)vgpu__libc_function("clock_gettime", &gettime);
    vgpu_sleep_function own_nanosleep = (vgpu_sleep_function)vgpu__libc_function("clock_nanosleep", &nanosleep);
    __atomic_store_n(&vgpu__gettime, own_gettime, __ATOMIC_RELAXED);
    __atomic_store_n(&vgpu__nanosleep, own_nanosleep, __ATOMIC_RELAXED);
}

struct search {
    uintptr_t address;
    const char *function;
    bool lacks; /* known not to have it */
};

static const ElfW(Dyn) * dynamic_of(const struct dl_phdr_info *object) {
    for (int i = 0; i < object->dlpi_phnum; i++)
        if (object->dlpi_phdr[i].p_type == PT_DYNAMIC)
            return (const ElfW(Dyn) *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
    return NULL;
}

static int search_object(struct dl_phdr_info *object, size_t size, void *argument) {
    struct search *search = argument;
    struct symbols symbols;
    const ElfW(Dyn) *dynamic = dynamic_of(object);
    bool inside = false;
    (void)size;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &object->dlpi_phdr[i];
        uintptr_t start = object->dlpi_addr + header->p_vaddr;
        inside |= header->p_type == PT_LOAD && search->address >= start && search->address - start < header->p_memsz;
    }
    if (inside && dynamic != NULL && read_dynamic(object->dlpi_addr, dynamic, &symbols))
        search->lacks = find_function(&symbols, search->function) == NULL;
    return inside;
}

bool vgpu__libc_object_has(const void *address, const char *function) {
    struct search search = {.address = (uintptr_t)address, .function = function};
    dl_iterate_phdr(search_object, &search);
    return !search.lacks;
}

extern ElfW(Dyn) _DYNAMIC[] __attribute__((visibility("hidden")));

const char *vgpu__libc_own_path(void) {
    for (const struct link_map *object = _r_debug.r_map; object != NULL; object = object->l_next)
        if (object->l_ld == _DYNAMIC)
            return object->l_name;
    return NULL;
}

/* Without a lock: nobody unloads what was there before us while we are constructed. */
void *vgpu__libc_in_front(const char *library, const char *function, size_t *size) {
    const struct link_map *object = _r_debug.r_map;
    void *found = NULL;
    for (; object != NULL && object->l_ld != _DYNAMIC; object = object->l_next) {
        struct symbols symbols;
        const ElfW(Sym) * symbol;
        if (found != NULL || !read_dynamic(object->l_addr, object->l_ld, &symbols) || !same(symbols.soname, library) ||
            find_symbol(&symbols, "vgpu_is_gate", STT_OBJECT) != NULL ||
            (symbol = find_symbol(&symbols, function, STT_FUNC)) == NULL)
            continue;
        found = (void *)(symbols.base + symbol->st_value);
        *size = symbol->st_size;
    }
    return object != NULL ? found : NULL; /* a copy in a namespace of its own is in no list that we see */
}

static void *open_library(const char *library, int flags) {
    static void *found;
    void *(*open_function)(const char *, int) = (void *(*)(const char *, int))vgpu__libc_function("dlopen", &found);
    return open_function != NULL ? open_function(library, flags) : NULL;
}

static void close_library(void *handle) {
    static void *found;
    int (*close_function)(void *) = (int (*)(void *))vgpu__libc_function("dlclose", &found);
    if (close_function != NULL)
        close_function(handle);
}

void *vgpu__libc_loaded(const char *library) {
    return open_library(library, RTLD_LAZY | RTLD_NOLOAD);
}

/* Where the gate stands in the driver's place, its own library lies under a private path. */
static void *open_private(const char *library) {
    char path[128];
    size_t length = 0;
    for (const char *folder = vgpu_driver_folder; *folder != '\0'; folder++)
        path[length++] = *folder;
    while (*library != '\0' && length < sizeof path - 1)
        path[length++] = *library++;
    path[length] = '\0';
    return open_library(path, RTLD_LAZY | RTLD_LOCAL);
}

static bool is_cuda(const char *library) {
    return library[3] == 'c'; /* not libnvidia-ml.so.1 */
}

/* Of an object that we have a handle of, so that it stays. */
static ElfW(Dyn) * soname_of(const struct link_map *object, const char *library) {
    struct symbols symbols;
    if (!read_dynamic(object->l_addr, object->l_ld, &symbols) || !same(symbols.soname, library))
        return NULL;
    ElfW(Dyn) *entry = object->l_ld;
    while (entry->d_tag != DT_SONAME)
        entry++;
    return entry;
}

struct first {
    const char *library;
    char path[PATH_MAX];
};

static int is_first(struct dl_phdr_info *object, size_t size, void *argument) {
    struct first *first = argument;
    struct symbols symbols;
    const ElfW(Dyn) *dynamic = dynamic_of(object);
    size_t length = 0;
    (void)size;
    if (dynamic == NULL || !read_dynamic(object->dlpi_addr, dynamic, &symbols) || !same(symbols.soname, first->library))
        return 0;
    while (object->dlpi_name[length] != '\0' && length < sizeof first->path - 1) {
        first->path[length] = object->dlpi_name[length];
        length++;
    }
    first->path[length] = '\0';
    return length > 0; /* the program itself has no name */
}

/* The library of this name that was loaded first. Not by asking the loader for the name: it would note the answer.
 * Other threads may unload what we look at, but not while the C library goes through its list for us. */
static void *loaded_first(const char *library) {
    struct first first = {.library = library};
    return dl_iterate_phdr(is_first, &first) != 0 ? open_library(first.path, RTLD_LAZY | RTLD_NOLOAD) : NULL;
}

/* A gate with no driver behind it leads back to us. */
static void *unless_gate(void *handle) {
    vgpu_dlsym_function look_up = vgpu__libc_dlsym();
    return handle != NULL && look_up != NULL && look_up(handle, "vgpu_is_gate") == NULL ? handle : NULL;
}

/* What the program has loaded is its driver of CUDA, also where the agent mounted another: images bring newer ones for
 * an older kernel module (forward compatibility). There is no such NVML, so what NVML says comes from the agent's: a
 * program that loads another first is not believed. */
static void *open_driver(const char *library) {
    void *handle = is_cuda(library) ? unless_gate(loaded_first(library)) : NULL;
    if (handle == NULL)
        handle = open_private(library);
    return handle != NULL ? handle : unless_gate(open_library(library, RTLD_LAZY | RTLD_LOCAL));
}

/* What is opened with RTLD_DEEPBIND looks names up past us, and asks the loader for the driver by its usual name: the
 * loader would hand out a driver that the program has opened by a path of its own (Julia does so for one that is newer
 * than the node's), which holds nobody to the share. So that name goes from the driver to the gate, where there is one.
 * The loader takes names from where we write; the page stays writable, as it was until the loader was done with it. */
static void give_name_to_gate(const char *library, void *driver) {
    enum { SHORTER = 3 }; /* the name without its first letters is nobody's */
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    ElfW(Dyn) *name = soname_of(driver, library);
    if (name == NULL || mprotect((void *)((uintptr_t)name & ~(page - 1)), ((uintptr_t)name & (page - 1)) + sizeof *name,
                                 PROT_READ | PROT_WRITE) != 0)
        return;
    name->d_un.d_val += SHORTER;
    void *gate = open_library(library, RTLD_LAZY | RTLD_LOCAL);
    if (gate != NULL && unless_gate(gate) == NULL)
        return;
    name->d_un.d_val -= SHORTER; /* there is none, or the program's own is the usual one, or hides another driver */
    if (gate != NULL)
        close_library(gate);
}

/* Decided once: functions of two drivers do not go together. */
static void *driver_of(const char *library) {
    static void *cuda, *nvml;
    void **driver = is_cuda(library) ? &cuda : &nvml, *known = __atomic_load_n(driver, __ATOMIC_ACQUIRE);
    if (known != NULL)
        return known;
    void *found = open_driver(library);
    if (!__atomic_compare_exchange_n(driver, &known, found, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return known;
    if (found != NULL && is_cuda(library))
        give_name_to_gate(library, found);
    return found;
}

void (*vgpu__libc_driver_symbol(const char *library, const char *symbol))(void) {
    void *handle = driver_of(library);
    return handle != NULL ? (void (*)(void))vgpu__libc_dlsym()(handle, symbol) : NULL;
}
