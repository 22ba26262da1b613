/* SPDX-License-Identifier: Apache-2.0
 *
 * The library's only voice: one line on stderr where the tenant must know why the driver refuses it.
 *
 * Never allocates, takes no lock, keeps errno. Lines are cut at 512 bytes, and a process gets at most 20 of them.
 */
#ifndef VGPU_LOG_H
#define VGPU_LOG_H

#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
void vgpu_complain(const char *format, ...);

#endif
