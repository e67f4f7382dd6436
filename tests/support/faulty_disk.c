/* A disk that goes wrong when a test wants it to. Preloaded (LD_PRELOAD), it stands between a process and the calls of
 * libc by which files are opened, read and changed, and lets pass all that is not below the watched directory.
 *
 *   disk_watch(directory)                   watch this directory, an absolute path, and forget what was open before
 *   disk_plan(kinds, at, act, error, on)    count calls of these kinds from now on, and act at number `at`, from 1
 *                                           (0: never); with `on` not 0 also at each one behind it
 *   disk_calls()                            how many calls were counted since the plan
 *   disk_record(fd)                         write calls that succeed, and syncs that fail, into this descriptor
 *   disk_note(data, length)                 put a note of the test's own into the record
 *
 * Kinds are bits, and acts as in the enumerations below. A record is `struct entry` followed by `length` bytes: what
 * was written, the path below the directory, or two paths with a NUL between. All counted calls but syncs happen one
 * after the other, so that the record has the order in which they happened; a sync has an entry when it begins and one
 * when it is over, as other threads may write meanwhile.
 *
 * Known by their paths are files that are opened by absolute ones. Not seen are changes through mappings, and calls
 * that libc makes inside itself (stdio).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    OPEN = 1,
    WRITE = 2,
    TRUNCATE = 4,
    SYNC = 8,
    RENAME = 16,
    LINK = 32,
    UNLINK = 64,
    READ = 128, /* is not recorded */
    /* Only in records. */
    SYNC_BEGIN = 256,
    NOTE = 512,
    SYNC_FAILED = 1024,
};

enum act {
    FAIL = 1,        /* with the plan's error; nothing is done */
    SHORTEN = 2,     /* write half (what writes nothing passes), and fail with the error at those behind it */
    KILL_BEFORE = 3, /* end the process by SIGKILL instead */
    KILL_AMID = 4,   /* write half, then end it (what writes nothing: not at all) */
    KILL_AFTER = 5,
};

/* What is to become of a call. */
enum fate { PASSES, FAILS, IS_CUT, IS_LAST };

struct entry {
    uint32_t kind;
    int32_t fd;
    int64_t offset; /* of a write; the length after a truncation; the flags of an open */
    int64_t length;
};

enum { DESCRIPTORS = 4096 };

static char watched_path[4096];
static size_t watched_length;
static char watched_fds[DESCRIPTORS];
static int record_fd = -1;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static struct {
    unsigned kinds;
    long at;
    int act, error, on;
} plan;
static long calls;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

/* The part of a path below the watched directory ("" for itself), NULL when it is elsewhere. */
static const char *below(const char *path)
{
    if (watched_length == 0 || strncmp(path, watched_path, watched_length) != 0)
        return NULL;
    path += watched_length;
    return *path == '\0' ? path : *path == '/' ? path + 1 : NULL;
}

static int is_watched(int fd)
{
    return fd >= 0 && fd < DESCRIPTORS && watched_fds[fd];
}

static void __attribute__((noreturn)) end_process(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

static void put(const void *data, size_t length)
{
    const char *rest = data;
    while (length > 0) {
        long done = syscall(SYS_write, record_fd, rest, length);
        if (done <= 0)
            end_process(); /* a record with a gap would prove nothing */
        rest += done;
        length -= (size_t)done;
    }
}

static void record(enum kind kind, int fd, int64_t offset, const void *data, size_t length)
{
    struct entry entry = {kind, fd, offset, (int64_t)length};
    int error = errno;

    if (record_fd >= 0) {
        put(&entry, sizeof entry);
        put(data, length);
    }
    errno = error;
}

/* Count a call and take the turn that `leave` gives back. */
static enum fate enter(enum kind kind)
{
    int hit, behind;

    pthread_mutex_lock(&order);
    if (!(plan.kinds & kind))
        return PASSES;
    calls++;
    hit = plan.at > 0 && calls == plan.at;
    behind = plan.at > 0 && plan.on && calls > plan.at;
    if (!hit && !behind)
        return PASSES;
    switch (plan.act) {
    case FAIL:
        errno = plan.error;
        return FAILS;
    case SHORTEN:
        if (hit)
            return kind == WRITE ? IS_CUT : PASSES;
        errno = plan.error;
        return FAILS;
    case KILL_BEFORE:
        end_process();
    case KILL_AMID:
        if (kind != WRITE)
            end_process();
        return IS_CUT;
    default:
        return IS_LAST;
    }
}

static void leave(enum fate fate)
{
    if (fate == IS_LAST || (fate == IS_CUT && plan.act == KILL_AMID))
        end_process();
    pthread_mutex_unlock(&order);
}

static size_t cut(enum fate fate, size_t length)
{
    return fate == IS_CUT ? length / 2 : length;
}

void disk_watch(const char *directory)
{
    snprintf(watched_path, sizeof watched_path, "%s", directory);
    watched_length = strlen(watched_path);
    memset(watched_fds, 0, sizeof watched_fds);
}

void disk_plan(unsigned kinds, long at, int act, int error, int on)
{
    pthread_mutex_lock(&order);
    plan.kinds = kinds;
    plan.at = at;
    plan.act = act;
    plan.error = error;
    plan.on = on;
    calls = 0;
    pthread_mutex_unlock(&order);
}

long disk_calls(void)
{
    return calls;
}

void disk_record(int fd)
{
    record_fd = fd;
}

void disk_note(const void *data, size_t length)
{
    pthread_mutex_lock(&order);
    record(NOTE, -1, 0, data, length);
    pthread_mutex_unlock(&order);
}

static int opened(const char *path, int fd, int flags)
{
    const char *name = below(path);

    if (fd >= 0 && fd < DESCRIPTORS)
        watched_fds[fd] = name != NULL;
    if (fd >= 0 && name)
        record(OPEN, fd, flags, name, strlen(name));
    return fd;
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    unsigned mode;
    enum fate fate;
    int fd;

    va_start(rest, flags);
    mode = va_arg(rest, unsigned); /* of no meaning, and not looked at, where the flags make no file */
    va_end(rest);
    if (!below(path)) {
        fd = REAL(open)(path, flags, mode);
        return opened(path, fd, flags);
    }
    fate = enter(OPEN);
    fd = fate == FAILS ? -1 : opened(path, REAL(open)(path, flags, mode), flags);
    leave(fate);
    return fd;
}

int openat(int directory, const char *path, int flags, ...)
{
    va_list rest;
    unsigned mode;
    enum fate fate;
    int fd;

    va_start(rest, flags);
    mode = va_arg(rest, unsigned);
    va_end(rest);
    if (!below(path)) {
        fd = REAL(openat)(directory, path, flags, mode);
        return opened(path, fd, flags);
    }
    fate = enter(OPEN);
    fd = fate == FAILS ? -1 : opened(path, REAL(openat)(directory, path, flags, mode), flags);
    leave(fate);
    return fd;
}

int close(int fd)
{
    if (is_watched(fd))
        watched_fds[fd] = 0;
    return REAL(close)(fd);
}

ssize_t read(int fd, void *data, size_t length)
{
    enum fate fate;
    ssize_t done;

    if (!is_watched(fd))
        return REAL(read)(fd, data, length);
    fate = enter(READ);
    done = fate == FAILS ? -1 : REAL(read)(fd, data, length);
    leave(fate);
    return done;
}

ssize_t pread(int fd, void *data, size_t length, off_t offset)
{
    enum fate fate;
    ssize_t done;

    if (!is_watched(fd))
        return REAL(pread)(fd, data, length, offset);
    fate = enter(READ);
    done = fate == FAILS ? -1 : REAL(pread)(fd, data, length, offset);
    leave(fate);
    return done;
}

ssize_t write(int fd, const void *data, size_t length)
{
    enum fate fate;
    ssize_t done = -1;

    if (!is_watched(fd))
        return REAL(write)(fd, data, length);
    fate = enter(WRITE);
    if (fate != FAILS)
        done = REAL(write)(fd, data, cut(fate, length));
    if (done > 0)
        record(WRITE, fd, lseek(fd, 0, SEEK_CUR) - done, data, (size_t)done);
    leave(fate);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    ssize_t done = 0;
    int part;

    if (!is_watched(fd))
        return REAL(writev)(fd, parts, count);
    for (part = 0; part < count; part++) {
        ssize_t one = write(fd, parts[part].iov_base, parts[part].iov_len);
        if (one < 0)
            return done ? done : -1;
        done += one;
        if ((size_t)one < parts[part].iov_len)
            break;
    }
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    enum fate fate;
    ssize_t done = -1;

    if (!is_watched(fd))
        return REAL(pwrite)(fd, data, length, offset);
    fate = enter(WRITE);
    if (fate != FAILS)
        done = REAL(pwrite)(fd, data, cut(fate, length), offset);
    if (done > 0)
        record(WRITE, fd, offset, data, (size_t)done);
    leave(fate);
    return done;
}

int ftruncate(int fd, off_t length)
{
    enum fate fate;
    int result = -1;

    if (!is_watched(fd))
        return REAL(ftruncate)(fd, length);
    fate = enter(TRUNCATE);
    if (fate != FAILS)
        result = REAL(ftruncate)(fd, length);
    if (result == 0)
        record(TRUNCATE, fd, length, "", 0);
    leave(fate);
    return result;
}

static int synced(int fd, int (*sync)(int))
{
    enum fate fate = enter(SYNC);
    int result;

    record(SYNC_BEGIN, fd, 0, "", 0);
    if (fate == FAILS) {
        record(SYNC_FAILED, fd, 0, "", 0);
        leave(fate);
        return -1;
    }
    pthread_mutex_unlock(&order);
    result = sync(fd);
    pthread_mutex_lock(&order);
    record(result == 0 ? SYNC : SYNC_FAILED, fd, 0, "", 0);
    leave(fate);
    return result;
}

int fsync(int fd)
{
    return is_watched(fd) ? synced(fd, REAL(fsync)) : REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    return is_watched(fd) ? synced(fd, REAL(fdatasync)) : REAL(fdatasync)(fd);
}

/* A call with two paths, of which the second is what it makes. */
static int moved(enum kind kind, const char *from, const char *to, int (*move)(const char *, const char *))
{
    char names[2 * sizeof watched_path];
    const char *source = below(from), *target = below(to);
    enum fate fate;
    int result = -1, length;

    if (!target)
        return move(from, to);
    fate = enter(kind);
    if (fate != FAILS)
        result = move(from, to);
    length = snprintf(names, sizeof names, "%s%c%s", source ? source : "", 0, target);
    if (result == 0)
        record(kind, -1, 0, names, (size_t)length);
    leave(fate);
    return result;
}

int rename(const char *from, const char *to)
{
    return moved(RENAME, from, to, REAL(rename));
}

int link(const char *from, const char *to)
{
    return moved(LINK, from, to, REAL(link));
}

/* With absolute paths, the only ones that are watched, these are the same as their older brothers. */
int renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    if (!below(to))
        return REAL(renameat)(from_directory, from, to_directory, to);
    return rename(from, to);
}

int linkat(int from_directory, const char *from, int to_directory, const char *to, int flags)
{
    if (!below(to))
        return REAL(linkat)(from_directory, from, to_directory, to, flags);
    return link(from, to);
}

int unlink(const char *path)
{
    const char *name = below(path);
    enum fate fate;
    int result = -1;

    if (!name)
        return REAL(unlink)(path);
    fate = enter(UNLINK);
    if (fate != FAILS)
        result = REAL(unlink)(path);
    if (result == 0)
        record(UNLINK, -1, 0, name, strlen(name));
    leave(fate);
    return result;
}

int unlinkat(int directory, const char *path, int flags)
{
    if (!below(path) || flags != 0)
        return REAL(unlinkat)(directory, path, flags);
    return unlink(path);
}

/* The same calls under the names they have in programs that were compiled for large files. */
int open64(const char *path, int flags, ...) __attribute__((alias("open")));
int openat64(int directory, const char *path, int flags, ...) __attribute__((alias("openat")));
ssize_t pread64(int fd, void *data, size_t length, off64_t offset) __attribute__((alias("pread")));
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) __attribute__((alias("pwrite")));
int ftruncate64(int fd, off64_t length) __attribute__((alias("ftruncate")));
