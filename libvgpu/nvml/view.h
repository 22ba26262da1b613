/* SPDX-License-Identifier: Apache-2.0
 *
 * NVML as the share sees it: the device behind an NVML handle, for the files of this folder.
 */
#ifndef VGPU_NVML_VIEW_H
#define VGPU_NVML_VIEW_H

#include "core/share.h"
#include "nvml/real.h"

/* The device's shares. NULL: *result says what to return (no share of it: NVML_ERROR_NO_PERMISSION). */
struct vgpu_device *vgpu__nvml_device(nvmlDevice_t handle, nvmlReturn_t *result);

#endif
