/* SPDX-License-Identifier: Apache-2.0 */
#include "core/clock.h"

vgpu_gettime_function vgpu__gettime;
vgpu_sleep_function vgpu__nanosleep;
