/* Loaded into a contract before its C library (LD_PRELOAD) by `hp check`, so that one source of chance is another one,
 * or none. Compiled where it is needed; which sources, the -D options say:
 *   SHIFT_S=n     the wall clock is off by n seconds
 *   STEPS         clocks go on a hundredth of a second with each look, from a fixed time on
 *   RANDOM        random bytes are always the same ones
 *   PID           process ids are always the same ones
 * Without any it does nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define REAL(type, name, ...)                                    \
    static type (*real)(__VA_ARGS__);                            \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#if defined STEPS || defined SHIFT_S
static int now(clockid_t clock, struct timespec *at) {
#ifdef STEPS
    static long steps;
    long step = __atomic_add_fetch(&steps, 1, __ATOMIC_RELAXED);
    int is_wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
    at->tv_sec = (is_wall ? 1600000000 : 1) + step / 100;
    at->tv_nsec = step % 100 * 10000000;
    return 0;
#else
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int done = real(clock, at);
    /* Not the others: who waits until a time of theirs would wait for ever. */
    if (done == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += SHIFT_S;
    return done;
#endif
}

int clock_gettime(clockid_t clock, struct timespec *at) { return now(clock, at); }

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec time;
    (void)zone;
    if (now(CLOCK_REALTIME, &time) != 0) return -1;
    at->tv_sec = time.tv_sec;
    at->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec time;
    if (now(CLOCK_REALTIME, &time) != 0) return -1;
    if (at) *at = time.tv_sec;
    return time.tv_sec;
}

int timespec_get(struct timespec *at, int base) {
    return base == TIME_UTC && now(CLOCK_REALTIME, at) == 0 ? base : 0;
}
#endif

#ifdef RANDOM
static void fill(void *into, size_t bytes) {
    static unsigned long long seed = 88172645463325252ull;
    unsigned char *at = into;
    while (bytes-- > 0) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        *at++ = (unsigned char)(seed >> 32);
    }
}

ssize_t getrandom(void *into, size_t bytes, unsigned flags) {
    (void)flags;
    fill(into, bytes);
    return (ssize_t)bytes;
}

int getentropy(void *into, size_t bytes) {
    if (bytes > 256) {
        errno = EIO;
        return -1;
    }
    fill(into, bytes);
    return 0;
}

void arc4random_buf(void *into, size_t bytes) { fill(into, bytes); }

unsigned arc4random(void) {
    unsigned number;
    fill(&number, sizeof number);
    return number;
}

long syscall(long number, ...) {
    va_list list;
    long arg[6];
    va_start(list, number);
    for (int i = 0; i < 6; i++) arg[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_getrandom) return getrandom((void *)arg[0], (size_t)arg[1], (unsigned)arg[2]);
    REAL(long, syscall, long, ...);
    return real(number, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
}

static const char *calm(const char *path) {
    if (strcmp(path, "/dev/urandom") == 0 || strcmp(path, "/dev/random") == 0) return "/dev/zero";
    return path;
}

#define OPEN(name)                                    \
    int name(const char *path, int flags, ...) {      \
        va_list list;                                 \
        va_start(list, flags);                        \
        mode_t mode = (mode_t)va_arg(list, unsigned); \
        va_end(list);                                 \
        REAL(int, name, const char *, int, ...);      \
        return real(calm(path), flags, mode);         \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                      \
    int name(int dir, const char *path, int flags, ...) { \
        va_list list;                                     \
        va_start(list, flags);                            \
        mode_t mode = (mode_t)va_arg(list, unsigned);     \
        va_end(list);                                     \
        REAL(int, name, int, const char *, int, ...);     \
        return real(dir, calm(path), flags, mode);        \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                       \
    FILE *name(const char *path, const char *mode) {      \
        REAL(FILE *, name, const char *, const char *);   \
        return real(calm(path), mode);                    \
    }
FOPEN(fopen)
FOPEN(fopen64)
#endif

#ifdef PID
pid_t getpid(void) { return 12345; }
pid_t getppid(void) { return 12344; }
#endif
