/* SPDX-License-Identifier: Apache-2.0
 *
 * A program that reaches the driver in the way named by its first argument and then takes MiB after MiB, 256 at most.
 * Prints how many it got. DRIVER, the second argument, is the path of the driver's library.
 */
#include "abi/cuda.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 256 };

typedef void *(*find_fn)(void *library, const char *name);

static int take(cuMemAlloc_v2_fn alloc) {
    CUdeviceptr pointer;
    int count = 0;
    while (count < MOST && alloc(&pointer, 1 << 20) == CUDA_SUCCESS)
        count++;
    return count;
}

static cuMemAlloc_v2_fn start(find_fn find, void *library) {
    CUcontext context;
    cuInit_fn init = (cuInit_fn)find(library, "cuInit");
    cuDevicePrimaryCtxRetain_fn retain = (cuDevicePrimaryCtxRetain_fn)find(library, "cuDevicePrimaryCtxRetain");
    cuCtxSetCurrent_fn set_current = (cuCtxSetCurrent_fn)find(library, "cuCtxSetCurrent");
    cuMemAlloc_v2_fn alloc = (cuMemAlloc_v2_fn)find(library, "cuMemAlloc_v2");
    if (init == NULL || alloc == NULL || init(0) != CUDA_SUCCESS || retain(&context, 0) != CUDA_SUCCESS ||
        set_current(context) != CUDA_SUCCESS)
        exit(3);
    return alloc;
}

static int grab(find_fn find, void *library) {
    return take(start(find, library));
}

static void *by_dlsym(void *library, const char *name) {
    return dlsym(library, name);
}

static void *by_wrong_version(void *library, const char *name) {
    void *found = dlvsym(library, name, "CUDA_1");
    return found != NULL ? found : dlsym(library, name);
}

/* Through a symbol of the program's own that the loader binds: what a linked program has. */
static void *by_scope(void *library, const char *name) {
    (void)library;
    return dlsym(NULL, name);
}

/* What no library in the process can see: the driver's symbol table, read by hand. */
static void *by_hand(void *library, const char *name) {
    const struct link_map *object = library;
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    for (const ElfW(Dyn) *entry = object->l_ld; entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag == DT_SYMTAB)
            symbols = (const ElfW(Sym) *)entry->d_un.d_ptr;
        if (entry->d_tag == DT_STRTAB)
            strings = (const char *)entry->d_un.d_ptr;
    }
    for (const ElfW(Sym) *symbol = symbols; (const char *)symbol < strings; symbol++)
        if (symbol->st_shndx != SHN_UNDEF && strcmp(strings + symbol->st_name, name) == 0)
            return (void *)(object->l_addr + symbol->st_value);
    return NULL;
}

/* A library that is loaded into a namespace of its own, with all that it needs, and looks there for itself. */
static int from_inside_a_namespace(const char *helper) {
    void *library = dlmopen(LM_ID_NEWLM, helper, RTLD_NOW);
    int (*inside)(void) = library != NULL ? (int (*)(void))by_hand(library, "grab_inside") : NULL;
    return inside != NULL ? inside() : -1;
}

static int in_child(long pid, cuMemAlloc_v2_fn alloc) {
    int status;
    if (pid == 0)
        _exit(take(alloc) % MOST);
    return waitpid((pid_t)pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static cuMemAlloc_v2_fn driver_alloc;
static int cloned(void *ignored) {
    (void)ignored;
    return take(driver_alloc) % MOST;
}

/* A second process on the same memory: neither a thread nor a fork. */
static int in_clone(void) {
    static char stack[1 << 18] __attribute__((aligned(16)));
    int status;
    pid_t pid = clone(cloned, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* From a signal handler, while the thread is inside of a call of the driver: a launch into a full queue. */
static void grab_in_handler(int signal_number) {
    char text[16];
    (void)signal_number;
    int length = snprintf(text, sizeof text, "%d\n", take(driver_alloc));
    _exit(write(1, text, (size_t)length) == length ? 0 : 4);
}

static void launch_for_ever(void *library) {
    static const char image[] =
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry spin(.param .u64 ns) { ret; }\n";
    CUmodule module;
    CUfunction function;
    unsigned long long gpu_ns = 1000000000;
    void *params[] = {&gpu_ns};
    driver_alloc = start(by_dlsym, library);
    ((cuModuleLoadData_fn)dlsym(library, "cuModuleLoadData"))(&module, image);
    ((cuModuleGetFunction_fn)dlsym(library, "cuModuleGetFunction"))(&function, module, "spin");
    cuLaunchKernel_fn launch = (cuLaunchKernel_fn)dlsym(library, "cuLaunchKernel");
    signal(SIGALRM, grab_in_handler);
    alarm(1);
    for (;;)
        launch(function, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL);
}

int main(int argc, char **argv) {
    const char *way = argv[1], *driver = argc == 3 ? argv[2] : "libcuda.so.1";
    int count = -2;
    if (strcmp(way, "namespace-helper") == 0) {
        count = from_inside_a_namespace(driver);
    } else {
        void *library = dlopen(driver, RTLD_NOW | RTLD_GLOBAL);
        if (strcmp(way, "path") == 0)
            count = grab(by_dlsym, library);
        else if (strcmp(way, "wrong-version") == 0)
            count = grab(by_wrong_version, library);
        else if (strcmp(way, "scope") == 0)
            count = grab(by_scope, NULL);
        else if (strcmp(way, "namespace") == 0)
            count = grab(by_dlsym, dlmopen(LM_ID_NEWLM, driver, RTLD_NOW));
        else if (strcmp(way, "by-hand") == 0)
            count = grab(by_hand, library);
        else if (strcmp(way, "signal-handler") == 0)
            launch_for_ever(library);
        else if (strcmp(way, "raw-fork") == 0) {
            cuMemAlloc_v2_fn alloc = start(by_dlsym, library);
            count = take(alloc);
            count += in_child(syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0), alloc);
        } else if (strcmp(way, "clone-with-memory") == 0) {
            driver_alloc = start(by_dlsym, library);
            count = in_clone();
            count += take(driver_alloc);
        }
    }
    printf("%d\n", count);
    return 0;
}
