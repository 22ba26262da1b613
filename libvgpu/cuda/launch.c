/* SPDX-License-Identifier: Apache-2.0
 *
 * The entry points that launch kernels, in all their forms. What a launch costs: paying.c; how the usual one gets by
 * without looking anything up: thread.h.
 */
#include "cuda/launch.h"

#include "cuda/thread.h"

#include <stddef.h>

#define LAUNCH(key, stream, symbol, ...)                                                                               \
    do {                                                                                                               \
        struct vgpu__launch launch;                                                                                    \
        CUresult result = vgpu__launch_begin(&launch, key, stream);                                                    \
        if (result != CUDA_SUCCESS)                                                                                    \
            return result;                                                                                             \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        vgpu__launch_end(&launch, result);                                                                             \
        return result;                                                                                                 \
    } while (0)

static uint64_t blocks(unsigned int x, unsigned int y, unsigned int z) {
    return (uint64_t)x * y * (z > 0 ? z : 1);
}

/* Of kernels, again and again the same. The three functions of a symbol have the same parameters, so that each goes on
 * to the next, or to the driver, by a jump: nothing is pushed and nothing is copied. */
#define PARAMETERS                                                                                                     \
    CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z, unsigned int block_x,          \
        unsigned int block_y, unsigned int block_z, unsigned int shared_bytes, CUstream hStream, void **params,        \
        void **extra
#define ARGUMENTS function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, hStream, params, extra

#define LAUNCH_KERNEL(symbol, stream)                                                                                  \
    static __attribute__((noinline)) CUresult symbol##_looked_at(PARAMETERS) {                                         \
        struct vgpu__launch launch;                                                                                    \
        uint64_t many = blocks(grid_x, grid_y, grid_z), xy = vgpu__xy(grid_x, grid_y);                                 \
        struct vgpu__plan *plan = vgpu__plan_of(function, xy, grid_z);                                                 \
        if (plan != NULL)                                                                                              \
            vgpu__plan_end(plan);                                                                                      \
        CUresult result = vgpu__launch_begin(&launch, vgpu__launch_key(function, many), stream);                       \
        if (result != CUDA_SUCCESS)                                                                                    \
            return result;                                                                                             \
        VGPU_CALL(result, symbol, ARGUMENTS);                                                                          \
        vgpu__launch_end(&launch, result);                                                                             \
        if (launch.charged && result == CUDA_SUCCESS)                                                                  \
            vgpu__plan(function, xy, grid_z);                                                                          \
        return result;                                                                                                 \
    }                                                                                                                  \
    static __attribute__((noinline)) CUresult symbol##_of_another_plan(PARAMETERS) {                                   \
        uint64_t xy = vgpu__xy(grid_x, grid_y);                                                                        \
        for (int i = 1; i < VGPU_PLANS; i++)                                                                           \
            if (vgpu__planned(&vgpu__thread.plans[i], function, xy, grid_z))                                           \
                return VGPU_REAL(symbol)(ARGUMENTS);                                                                   \
        return symbol##_looked_at(ARGUMENTS);                                                                          \
    }                                                                                                                  \
    CUresult symbol(PARAMETERS) {                                                                                      \
        if (__builtin_expect(vgpu__planned(vgpu__thread.plans, function, vgpu__xy(grid_x, grid_y), grid_z), 1))        \
            return VGPU_REAL(symbol)(ARGUMENTS);                                                                       \
        return symbol##_of_another_plan(ARGUMENTS);                                                                    \
    }

LAUNCH_KERNEL(cuLaunchKernel, hStream)
LAUNCH_KERNEL(cuLaunchKernel_ptsz, vgpu__per_thread(hStream))

static uint64_t config_key(const CUlaunchConfig *config, CUfunction function) {
    return vgpu__launch_key(function,
                            config != NULL ? blocks(config->gridDimX, config->gridDimY, config->gridDimZ) : 0);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
    LAUNCH(config_key(config, function), config != NULL ? config->hStream : NULL, cuLaunchKernelEx, config, function,
           params, extra);
}

CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
    LAUNCH(config_key(config, function), vgpu__per_thread(config != NULL ? config->hStream : NULL),
           cuLaunchKernelEx_ptsz, config, function, params, extra);
}

CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                   unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                   unsigned int shared_bytes, CUstream hStream, void **params) {
    LAUNCH(vgpu__launch_key(function, blocks(grid_x, grid_y, grid_z)), hStream, cuLaunchCooperativeKernel, function,
           grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, hStream, params);
}

CUresult cuLaunchCooperativeKernel_ptsz(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                        unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                        unsigned int block_z, unsigned int shared_bytes, CUstream hStream,
                                        void **params) {
    LAUNCH(vgpu__launch_key(function, blocks(grid_x, grid_y, grid_z)), vgpu__per_thread(hStream),
           cuLaunchCooperativeKernel_ptsz, function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes,
           hStream, params);
}

/* One kernel per device, each paid on its own, and measured from before all of them to behind them: nothing of ours may
 * stand between. */
CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned int count, unsigned int flags) {
    struct vgpu__launch launches[VGPU_MAX_ORDINALS];
    CUresult result = CUDA_SUCCESS;
    unsigned int paid = 0;
    if (list == NULL || count > VGPU_MAX_ORDINALS)
        return CUDA_ERROR_INVALID_VALUE; /* more than one for each device */
    for (; result == CUDA_SUCCESS && paid < count; paid++) {
        const CUDA_LAUNCH_PARAMS *one = &list[paid];
        uint64_t key = vgpu__launch_key(one->function, blocks(one->gridDimX, one->gridDimY, one->gridDimZ));
        result = vgpu__launch_begin(&launches[paid], key, one->hStream);
    }
    if (result == CUDA_SUCCESS)
        VGPU_CALL(result, cuLaunchCooperativeKernelMultiDevice, list, count, flags);
    for (unsigned int i = 0; i < paid; i++)
        vgpu__launch_end(&launches[i], result);
    return result;
}

CUresult cuLaunch(CUfunction function) {
    LAUNCH(vgpu__launch_key(function, 1), NULL, cuLaunch, function);
}

CUresult cuLaunchGrid(CUfunction function, int width, int height) {
    LAUNCH(vgpu__launch_key(function, (uint64_t)width * (uint64_t)height), NULL, cuLaunchGrid, function, width, height);
}

CUresult cuLaunchGridAsync(CUfunction function, int width, int height, CUstream hStream) {
    LAUNCH(vgpu__launch_key(function, (uint64_t)width * (uint64_t)height), hStream, cuLaunchGridAsync, function, width,
           height, hStream);
}
