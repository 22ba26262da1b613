/*
 * The tenant of the demo and of the end-to-end tests: a CUDA program like any other. It knows nothing of shares; it is
 * linked against libcuda.so.1 and does what it does on a whole GPU.
 *
 *   worker run BLOB_MB [KERNEL_US]   says what it sees as its GPU, loads a blob and checks it, then computes until
 * SIGTERM worker grab MB                   allocates MB on top and says how that went; exit status 0 granted, 3 out of
 * memory
 *
 * One line of `key=value` pairs on stdout for each thing that happened.
 */
#include "abi/cuda.h"

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MEBIBYTE = 1 << 20, MEGABYTE = 1000000, EXIT_OUT_OF_MEMORY = 3, CHUNK_BYTES = 4 * MEGABYTE, IN_FLIGHT = 8 };

/* Runs for the nanoseconds in its parameter, by the GPU's own clock. */
static const char SPIN_PTX[] = ".version 7.0\n"
                               ".target sm_52\n"
                               ".address_size 64\n"
                               ".visible .entry spin(.param .u64 duration_ns)\n"
                               "{\n"
                               "    .reg .pred %p;\n"
                               "    .reg .u64 %start, %now, %end, %wanted;\n"
                               "    ld.param.u64 %wanted, [duration_ns];\n"
                               "    mov.u64 %start, %globaltimer;\n"
                               "    add.u64 %end, %start, %wanted;\n"
                               "again:\n"
                               "    mov.u64 %now, %globaltimer;\n"
                               "    setp.lt.u64 %p, %now, %end;\n"
                               "    @%p bra again;\n"
                               "    ret;\n"
                               "}\n";

static volatile sig_atomic_t stopping;

static void on_signal(int number) {
    (void)number;
    stopping = 1;
}

static const char *error_name(CUresult result) {
    const char *name = "unknown";
    cuGetErrorName(result, &name);
    return name;
}

static void check(CUresult result, const char *what) {
    if (result == CUDA_SUCCESS)
        return;
    printf("failed what=%s error=%s\n", what, error_name(result));
    exit(result == CUDA_ERROR_OUT_OF_MEMORY ? EXIT_OUT_OF_MEMORY : EXIT_FAILURE);
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* The blob's content is a function of the position, so that any part of it can be checked later. */
static void fill(uint32_t *words, size_t bytes, uint64_t offset) {
    for (size_t i = 0; i < bytes / sizeof *words; i++)
        words[i] = (uint32_t)((offset / sizeof *words + i) * 2654435761U);
}

static void load_blob(CUdeviceptr blob, uint64_t size_bytes) {
    static uint32_t chunk[CHUNK_BYTES / sizeof(uint32_t)];
    for (uint64_t offset = 0; offset < size_bytes; offset += CHUNK_BYTES) {
        fill(chunk, CHUNK_BYTES, offset);
        check(cuMemcpyHtoD_v2(blob + offset, chunk, CHUNK_BYTES), "cuMemcpyHtoD");
    }
}

/* Returns how many of the chunks, one in `step`, do not hold what was loaded. */
static unsigned damaged_chunks(CUdeviceptr blob, uint64_t size_bytes, unsigned step) {
    static uint32_t found[CHUNK_BYTES / sizeof(uint32_t)], expected[CHUNK_BYTES / sizeof(uint32_t)];
    unsigned damaged = 0;
    for (uint64_t offset = 0; offset < size_bytes; offset += (uint64_t)CHUNK_BYTES * step) {
        fill(expected, CHUNK_BYTES, offset);
        check(cuMemcpyDtoH_v2(found, blob + offset, CHUNK_BYTES), "cuMemcpyDtoH");
        damaged += memcmp(found, expected, CHUNK_BYTES) != 0;
    }
    return damaged;
}

static void open_gpu(void) {
    CUdevice device;
    CUcontext context;
    char name[96];
    size_t total = 0, free_bytes = 0;
    check(cuInit(0), "cuInit");
    check(cuDeviceGet(&device, 0), "cuDeviceGet");
    check(cuDeviceGetName(name, sizeof name, device), "cuDeviceGetName");
    check(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    check(cuMemGetInfo_v2(&free_bytes, &total), "cuMemGetInfo");
    printf("gpu name=\"%s\" total_mib=%zu free_mib=%zu\n", name, total / MEBIBYTE, free_bytes / MEBIBYTE);
}

/* Keeps a few kernels in flight, as frameworks do, and reports once a second. */
static void compute(CUdeviceptr blob, uint64_t size_bytes, uint64_t kernel_ns) {
    CUmodule module;
    CUfunction spin;
    CUevent done[IN_FLIGHT];
    void *parameters[] = {&kernel_ns};
    check(cuModuleLoadData(&module, SPIN_PTX), "cuModuleLoadData");
    check(cuModuleGetFunction(&spin, module, "spin"), "cuModuleGetFunction");
    for (int i = 0; i < IN_FLIGHT; i++)
        check(cuEventCreate(&done[i], CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    double reported_s = now_s();
    for (uint64_t launches = 0; !stopping; launches++) {
        CUevent event = done[launches % IN_FLIGHT];
        if (launches >= IN_FLIGHT)
            check(cuEventSynchronize(event), "cuEventSynchronize");
        check(cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, NULL, parameters, NULL), "cuLaunchKernel");
        check(cuEventRecord(event, NULL), "cuEventRecord");
        if (now_s() - reported_s >= 1) {
            reported_s = now_s();
            unsigned damaged = damaged_chunks(blob, size_bytes, 100);
            printf("computing launches=%llu damaged_chunks=%u\n", (unsigned long long)launches + 1, damaged);
            if (damaged)
                exit(EXIT_FAILURE);
        }
    }
    check(cuCtxSynchronize(), "cuCtxSynchronize");
    printf("stopped\n");
}

static int run(uint64_t blob_mb, uint64_t kernel_us) {
    uint64_t size_bytes = blob_mb * MEGABYTE / CHUNK_BYTES * CHUNK_BYTES;
    CUdeviceptr blob;
    open_gpu();
    check(cuMemAlloc_v2(&blob, size_bytes), "cuMemAlloc");
    load_blob(blob, size_bytes);
    unsigned damaged = damaged_chunks(blob, size_bytes, 1);
    printf("loaded blob_mb=%llu damaged_chunks=%u\n", (unsigned long long)blob_mb, damaged);
    if (damaged)
        return EXIT_FAILURE;
    compute(blob, size_bytes, kernel_us * 1000);
    return EXIT_SUCCESS;
}

static int grab(uint64_t size_mb) {
    CUdeviceptr memory;
    open_gpu();
    CUresult result = cuMemAlloc_v2(&memory, size_mb * MEGABYTE);
    printf("grab mb=%llu result=%s\n", (unsigned long long)size_mb, error_name(result));
    return result == CUDA_SUCCESS               ? EXIT_SUCCESS
           : result == CUDA_ERROR_OUT_OF_MEMORY ? EXIT_OUT_OF_MEMORY
                                                : EXIT_FAILURE;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    if (argc >= 3 && strcmp(argv[1], "run") == 0)
        return run(strtoull(argv[2], NULL, 10), argc > 3 ? strtoull(argv[3], NULL, 10) : 1000);
    if (argc == 3 && strcmp(argv[1], "grab") == 0)
        return grab(strtoull(argv[2], NULL, 10));
    fprintf(stderr, "usage: worker run BLOB_MB [KERNEL_US] | worker grab MB\n");
    return 2;
}
