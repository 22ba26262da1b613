/* SPDX-License-Identifier: Apache-2.0
 *
 * The gate: a container finds it in the place of the driver's libcuda.so.1 and libnvidia-ml.so.1. It needs libvgpu and
 * the driver's own library under their private paths (DT_NEEDED), so where libvgpu cannot be loaded there is no driver:
 * what /etc/ld.so.preload does not do when a loader ignores it, the gate still does.
 * docs/adr/0006-a-gate-in-the-place-of-the-driver.md
 */
#include "gate/gate.h"

#include <stddef.h>

#ifdef GATE_CUDA
#define LIBRARY                 "libcuda.so.1"
#define MISSING                 801 /* CUDA_ERROR_NOT_SUPPORTED */
#define HOOK(symbol, what)      FUNCTION(symbol)
#define HOOK2(symbol, what)     FUNCTION(symbol) FUNCTION(symbol##_ptsz)
#define HOOK_PTDS(symbol, what) FUNCTION(symbol) FUNCTION(symbol##_ptds)
#define REASON(id, text)
#define PASSED(symbol, reason)      FUNCTION(symbol)
#define PASSED_PTSZ(symbol, reason) FUNCTION(symbol) FUNCTION(symbol##_ptsz)
#define PASSED_PTDS(symbol, reason) FUNCTION(symbol) FUNCTION(symbol##_ptds)
#define FUNCTIONS                   "gate/cuda_functions.def"
#else
#define LIBRARY                  "libnvidia-ml.so.1"
#define MISSING                  13 /* NVML_ERROR_FUNCTION_NOT_FOUND */
#define NVML_API(symbol, params) FUNCTION(symbol)
#define FUNCTIONS                "abi/nvml_api.def"
extern void *vgpu__slot_nvmlErrorString;
#endif

#define FUNCTION(symbol) extern void *vgpu__slot_##symbol;
#include FUNCTIONS
#undef FUNCTION

int vgpu__missing(void);
int vgpu__missing(void) {
    return MISSING;
}

/* Tells libvgpu that a handle leads here and not to the driver. */
__attribute__((visibility("default"))) const char vgpu_is_gate = 1;

__attribute__((constructor)) static void open_gate(void) {
    static const struct vgpu_gate_slot slots[] = {
#define FUNCTION(symbol) {#symbol, &vgpu__slot_##symbol},
#include FUNCTIONS
#ifndef GATE_CUDA
        {"nvmlErrorString", &vgpu__slot_nvmlErrorString},
#endif
    };
    vgpu_open_gate(LIBRARY, slots, sizeof slots / sizeof *slots);
}
