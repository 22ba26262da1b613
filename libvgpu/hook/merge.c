/* SPDX-License-Identifier: Apache-2.0
 *
 * Keeps an image's own /etc/ld.so.preload: a hook that the container runtime runs when the container's mounts are made,
 * in its mount namespace, before the container can see anything (createContainer of the OCI runtime specification).
 * Over the image's file lies a read-only mount of ours, which names libvgpu. The hook reads what lies under it, and
 * puts a file with both on top, libvgpu first: whatever the image's file says comes after a line that is whole.
 *
 * Fails safe: on any trouble the mount that names libvgpu alone stays, and the hook succeeds, so that the container
 * starts as it did before. It uses no C library: it runs on the node, whatever that has. docs/adr/0010
 */
#include "hook/system.h"

#include <fcntl.h>
#include <linux/stat.h>
#include <sys/mount.h>
#include <sys/stat.h>

#define TARGET "/etc/ld.so.preload"
enum { MOUNTS_BYTES = 4 << 20, CONTENT_BYTES = 64 << 10, PATH_BYTES = 4096, LABEL_BYTES = 256 };

static char mounts[MOUNTS_BYTES];
static char merged[2 * CONTENT_BYTES];

static unsigned long length(const char *text) {
    unsigned long n = 0;
    while (text[n])
        n++;
    return n;
}

static int same(const char *one, const char *other, unsigned long n) {
    for (unsigned long i = 0; i < n; i++)
        if (one[i] != other[i])
            return 0;
    return 1;
}

static int ends_with(const char *text, unsigned long n, const char *end) {
    unsigned long m = length(end);
    return n >= m && same(text + n - m, end, m);
}

/* Copies text without the escapes of mountinfo (\040); the place is as large as the text at least. */
static void unescape(char *to, const char *from, unsigned long n) {
    for (unsigned long i = 0; i < n; i++) {
        if (from[i] == '\\' && i + 3 < n) {
            *to++ = (char)((from[i + 1] - '0') << 6 | (from[i + 2] - '0') << 3 | (from[i + 3] - '0'));
            i += 3;
        } else {
            *to++ = from[i];
        }
    }
    *to = 0;
}

/* Returns the bytes of a file, or a negative errno; more than the place takes is -EFBIG. */
static long read_all(long fd, char *place, unsigned long size) {
    unsigned long have = 0;
    for (;;) {
        long n = call(SYS_read, fd, (long)(place + have), (long)(size - have), 0, 0);
        if (n <= 0)
            return n < 0 ? n : (long)have;
        have += (unsigned long)n;
        if (have == size)
            return -27; /* EFBIG */
    }
}

struct field {
    const char *at;
    unsigned long n;
};

/* Takes the next field of a line; one of no bytes at its end. */
static struct field next(const char **at) {
    struct field found = {*at, 0};
    while (found.at[found.n] && found.at[found.n] != ' ' && found.at[found.n] != '\n')
        found.n++;
    *at = found.at + found.n + (found.at[found.n] == ' ');
    return found;
}

static int has_word(const char *line, const char *word) {
    unsigned long n = length(word);
    for (; *line && *line != '\n'; line++)
        if (same(line, word, n))
            return 1;
    return 0;
}

/* Finds where our file with this name is mounted, and whether mounts made here would reach the node. */
static int find_target(const char *name, char *target, int *shared) {
    int found = 0;
    for (const char *line = mounts; *line;) {
        const char *at = line;
        next(&at), next(&at), next(&at);
        struct field root = next(&at), point = next(&at);
        if (point.n == 1)
            *shared = has_word(at, " shared:"); /* the fields after the mount's options */
        if (point.n < PATH_BYTES && ends_with(root.at, root.n, name) && ends_with(point.at, point.n, TARGET)) {
            unescape(target, point.at, point.n);
            found = 1;
        }
        while (*line && *line != '\n')
            line++;
        line += *line == '\n';
    }
    return found;
}

/* Returns the bytes of the image's own file, which lies under our mount; negative: there is none that can be taken.
 * No symbolic link is followed: it would lead to a file of the node. */
static long read_image(const char *root, const char *scratch, char *place) {
    if (call(SYS_mount, (long)root, (long)scratch, 0, MS_BIND, 0) < 0)
        return -1;
    long folder = call(SYS_openat, AT_FDCWD, (long)scratch, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, 0);
    long etc = call(SYS_openat, folder, (long)"etc", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0, 0);
    long fd = etc < 0
                  ? etc
                  : call(SYS_openat, etc, (long)"ld.so.preload", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0, 0);
    long n = -1;
    struct statx status;
    if (fd >= 0 && call(SYS_statx, fd, (long)"", AT_EMPTY_PATH, STATX_TYPE, (long)&status) == 0 &&
        (status.stx_mode & S_IFMT) == S_IFREG)
        n = read_all(fd, place, CONTENT_BYTES);
    call(SYS_close, fd, 0, 0, 0, 0), call(SYS_close, etc, 0, 0, 0, 0), call(SYS_close, folder, 0, 0, 0, 0);
    call(SYS_umount2, (long)scratch, MNT_DETACH, 0, 0, 0);
    return n;
}

static int says_something(const char *text, long n) {
    for (long i = 0; i < n; i++)
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\n' && text[i] != ':' && text[i] != '\r')
            return 1;
    return 0;
}

/* Gives a new file the label of our own (SELinux), so that containers may read it. */
static int take_label(long from, long to) {
    char label[LABEL_BYTES];
    long n = call(SYS_fgetxattr, from, (long)"security.selinux", (long)label, sizeof label, 0);
    return n <= 0 || call(SYS_fsetxattr, to, (long)"security.selinux", (long)label, n, 0) == 0;
}

/* Puts a file with this content over the target; it lives as long as the container's mounts. */
static void cover(const char *target, const char *scratch, const char *content, long n) {
    long under = call(SYS_openat, AT_FDCWD, (long)target, O_RDONLY | O_NOFOLLOW | O_CLOEXEC, 0, 0);
    if (under < 0 || call(SYS_mount, (long)"tmpfs", (long)scratch, (long)"tmpfs", MS_NOSUID | MS_NODEV,
                          (long)"mode=0755,size=256k") < 0)
        return;
    char file[PATH_BYTES + 16], place[32] = "/proc/self/fd/";
    unsigned long end = length(scratch);
    for (unsigned long i = 0; i < end; i++)
        file[i] = scratch[i];
    for (unsigned long i = 0; i < sizeof "/preload"; i++)
        file[end + i] = "/preload"[i];
    char *digit = place + length(place);
    if (under > 9)
        *digit++ = (char)('0' + under / 10 % 10);
    *digit++ = (char)('0' + under % 10);
    *digit = 0;
    long fd = call(SYS_openat, AT_FDCWD, (long)file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644, 0);
    if (fd >= 0 && call(SYS_write, fd, (long)content, n, 0, 0) == n && call(SYS_fchmod, fd, 0444, 0, 0, 0) == 0 &&
        take_label(under, fd) && call(SYS_mount, (long)file, (long)place, 0, MS_BIND, 0) == 0 &&
        call(SYS_mount, 0, (long)target, 0, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, 0) < 0)
        call(SYS_umount2, (long)target, MNT_DETACH | UMOUNT_NOFOLLOW, 0, 0, 0); /* what was there before stays */
    call(SYS_umount2, (long)scratch, MNT_DETACH, 0, 0, 0);
}

static void merge(const char *name, char *scratch) {
    static char target[PATH_BYTES], root[PATH_BYTES];
    int shared = 0;
    long fd = call(SYS_openat, AT_FDCWD, (long)"/proc/self/mountinfo", O_RDONLY | O_CLOEXEC, 0, 0);
    if (read_all(fd, mounts, sizeof mounts - 1) <= 0 || !find_target(name, target, &shared) || shared)
        return;
    unsigned long n = length(target) - length(TARGET);
    if (!n)
        return;
    for (unsigned long i = 0; i < n; i++)
        root[i] = target[i];
    fd = call(SYS_openat, AT_FDCWD, (long)target, O_RDONLY | O_NOFOLLOW | O_CLOEXEC, 0, 0);
    long ours = read_all(fd, merged, CONTENT_BYTES);
    if (ours <= 0 || merged[ours - 1] != '\n')
        return;
    long theirs = read_image(root, scratch, merged + ours);
    if (theirs <= 0 || !says_something(merged + ours, theirs))
        return;
    merged[ours + theirs] = '\n';
    cover(target, scratch, merged, ours + theirs + 1);
}

/* Arguments: this program by its path, whose folder takes the hook's own mounts; the file name of our preload file. */
__attribute__((used)) void vgpu__start(long *stack) {
    char **arguments = (char **)(stack + 1);
    if (stack[0] == 2 && length(arguments[0]) < PATH_BYTES) {
        char *end = arguments[0] + length(arguments[0]);
        while (end > arguments[0] && *end != '/')
            end--;
        *end = 0;
        if (end > arguments[0])
            merge(arguments[1], arguments[0]);
    }
    call(SYS_exit_group, 0, 0, 0, 0, 0);
    __builtin_unreachable();
}
