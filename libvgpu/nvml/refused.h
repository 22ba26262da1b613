/* SPDX-License-Identifier: Apache-2.0
 *
 * What is refused of NVML. For real.c; knows no declaration of NVML's.
 */
#ifndef VGPU_NVML_REFUSED_H
#define VGPU_NVML_REFUSED_H

/* What stands in the place of a refused function; NULL: it is not refused. */
void (*vgpu__nvml_refused(const char *symbol))(void);

#endif
