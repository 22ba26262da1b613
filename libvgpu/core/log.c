/* SPDX-License-Identifier: Apache-2.0 */
#include "core/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MOST_LINES = 20 };

void vgpu_complain(const char *format, ...) {
    static int lines;
    int saved = errno;
    if (__atomic_fetch_add(&lines, 1, __ATOMIC_RELAXED) >= MOST_LINES)
        return;
    char line[512] = "libvgpu: ";
    size_t used = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line + used, sizeof line - used - 1, format, arguments);
    va_end(arguments);
    if (length > 0) {
        used += (size_t)length;
        if (used > sizeof line - 2)
            used = sizeof line - 2;
        line[used++] = '\n';
        ssize_t ignored = write(STDERR_FILENO, line, used);
        (void)ignored;
    }
    errno = saved;
}
