// A contract that attacks its node on demand. Not an example: tests/it/cluster/hostile.rs runs it, see README.md beside it.
//
// A user's input is "ATTACK" or "ATTACK NUMBER". What the attack came to is the user's output. State: state/count, the attacks
// whose runs ended well, and state/tree/leaf, for the attacks to work on; an attack whose run is to fail leaves state/half first.
//
// Whatever could harm the machine is bounded here, should the node not stop it: so many processes, so many bytes.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static char *json;
static char result[4096];
static long number;
static int users, outs[64];

static void say(const char *what, int error) {
    snprintf(result, sizeof result, "%s%s%s", what, error ? ": " : "", error ? strerrorname_np(error) : "");
}

// What a call came to that the node may deny.
static void tried(long outcome) { outcome < 0 ? say("denied", errno) : say("done", 0); }

static void must(int holds, const char *what) {
    if (holds) return;
    perror(what);
    exit(99);
}

static void store(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    must(fd >= 0 && write(fd, text, strlen(text)) >= 0, path);
    close(fd);
}

static long load(const char *path) {
    char text[32] = {0};
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    must(read(fd, text, sizeof text - 1) >= 0, path);
    close(fd);
    return atol(text);
}

static void nap(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static void for_ever(void) {
    for (;;) pause();
}

static int all_signals_ignored(void) {
    for (int sig = 1; sig < 65; sig++) signal(sig, SIG_IGN);
    return 0;
}

// ---- Processes ---------------------------------------------------------------------------------------------------------

// A daemon of no session that is known, which holds all pipes and writes after the run, should it live to do so.
static void daemon_late(void) {
    int ready[2];
    must(pipe(ready) == 0, "pipe");
    if (fork() == 0) {
        setsid();
        if (fork() == 0) {
            setsid();
            all_signals_ignored();
            prctl(PR_SET_NAME, ") Z 1 (x");
            must(chdir("state") == 0, "chdir");
            must(write(ready[1], "x", 1) == 1, "write");
            nap(300);
            for (;;) store("late", "written after the run"), nap(1);
        }
        _exit(0);
    }
    char byte;
    must(read(ready[0], &byte, 1) == 1, "read");
    say("left behind", 0);
}

// Processes in sessions of their own that go on forking: at most `number` in all.
static void fork_bomb(void) {
    long *made = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(made != MAP_FAILED, "mmap");
    for (int i = 0; i < 4; i++)
        if (fork() == 0) {
            while (__sync_add_and_fetch(made, 1) < number) {
                setsid();
                fork();
            }
            for_ever();
        }
    // It is told when all are there, or what forbade more.
    for (int i = 0; i < 500 && __atomic_load_n(made, __ATOMIC_SEQ_CST) < number; i++) nap(1);
    say("forked", 0);
}

static void stop_self(void) { raise(SIGSTOP); }
static void kill_group(void) { kill(0, SIGKILL); }
static void kill_parent(void) {
    tried(kill(getppid() ? getppid() : 999999999, SIGKILL));
    nap(50);
}
static void stop_parent(void) { tried(kill(getppid() ? getppid() : 999999999, SIGSTOP)); }

// Only where nobody else is there to be hit: in a process name space of its own.
static void kill_all(void) {
    if (getpid() > 3) return say("not tried", 0);
    tried(kill(-1, SIGKILL));
}

static void trace_parent(void) {
    long outcome = ptrace(PTRACE_ATTACH, getppid() ? getppid() : 999999999, 0, 0);
    tried(outcome);
    if (outcome == 0) for_ever();
}

// The node's memory, where its secret key is, and the launcher's.
static void read_parent(void) {
    char path[64], byte;
    snprintf(path, sizeof path, "/proc/%d/mem", getppid() ? getppid() : 999999999);
    int fd = open(path, O_RDONLY);
    if (fd < 0) return tried(fd);
    tried(pread(fd, &byte, 1, 0x400000) < 0 && errno == EPERM ? -1 : 0);
}

static void be_urgent(void) {
    struct sched_param first = {.sched_priority = 1};
    int realtime = sched_setscheduler(0, SCHED_FIFO, &first);
    // Nothing is done with it: it would hit whoever else is on this machine.
    if (realtime == 0) first.sched_priority = 0, sched_setscheduler(0, SCHED_OTHER, &first);
    if (realtime < 0) realtime = setpriority(PRIO_PROCESS, 0, -20);
    tried(realtime);
}

static void raise_limits(void) {
    struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
    tried(setrlimit(RLIMIT_FSIZE, &all) & setrlimit(RLIMIT_DATA, &all) & setrlimit(RLIMIT_CORE, &all));
}

// ---- Pipes -------------------------------------------------------------------------------------------------------------

static void shout(void) {
    static char much[1 << 16];
    memset(much, 'x', sizeof much);
    for (long left = number << 20; number == 0 || left > 0; left -= sizeof much)
        must(write(1, much, sizeof much) > 0 && write(2, much, sizeof much / 2) > 0, "write");
    say("shouted", 0);
}

static void pour(int fd) {
    static char much[1 << 16];
    memset(much, 'y', sizeof much);
    for (long left = number << 20; left > 0; left -= sizeof much)
        if (write(fd, much, sizeof much) < 0) break;
}

static void pour_out(void) { pour(outs[0]), say("poured", 0); }

static void pour_npl(void) {
    int fds[2];
    must(sscanf(strstr(json, "\"npl\":["), "\"npl\":[%d,%d]", &fds[0], &fds[1]) == 2, "npl");
    pour(fds[1]);
    say("poured", 0);
}

static void pour_control(void) {
    int fd;
    must(sscanf(strstr(json, "\"control\":"), "\"control\":%d", &fd) == 1, "control");
    pour(fd);
    say("poured", 0);
}

// Everything that is open, in both directions, with all that can be set on it.
static void poke_all(void) {
    for (int fd = 0; fd < 1024; fd++) {
        if (fcntl(fd, F_GETFD) < 0 || fd == outs[0]) continue;
        fcntl(fd, F_SETFL, O_NONBLOCK);
        fcntl(fd, F_SETPIPE_SZ, 4096);
        char bytes[100];
        for (int i = 0; i < 100; i++) (void)!write(fd, "garbage", 7), (void)!read(fd, bytes, sizeof bytes);
        shutdown(fd, SHUT_RDWR);
        flock(fd, LOCK_EX | LOCK_NB);
        lseek(fd, 1 << 20, SEEK_SET);
    }
    say("poked", 0);
}

static void close_all(void) {
    for (int fd = 0; fd < 1024; fd++) close(fd);
}

// To every user what every other one gets, twice, cut in the middle of a character.
static void mix_outputs(void) {
    for (int twice = 0; twice < 2; twice++)
        for (int i = 0; i < users; i++) must(write(outs[i], "\xe2\x82", 2) == 2, "write");
}

// ---- State -------------------------------------------------------------------------------------------------------------

static void remove_below(const char *path) {
    char command[300];
    snprintf(command, sizeof command, "chmod -R u+rwx '%s' 2>/dev/null; rm -rf '%s'", path, path);
    must(system(command) >= 0, command);
}

static void remove_state(void) { remove_below("state"), say(access("state", F_OK) ? "done" : "denied", 0); }
static void empty_state(void) { remove_below("state/tree"), remove_below("state/count"), say("done", 0); }
static void rename_state(void) { tried(rename("state", "elsewhere")); }

static void link_state(void) {
    if (rename("state", "nowhere") < 0) return tried(-1);
    tried(symlink("nowhere", "state"));
}

static void link_away(void) { tried(symlink("/etc", "state/etc")); }
static void link_above(void) { tried(symlink("../cfg/hp.cfg", "state/cfg")); }
static void link_around(void) { tried(symlink("../tree/../../cfg", "state/tree/up")); }
static void link_hard(void) { tried(link("cfg/hp.cfg", "state/key")); }
static void link_hard_inside(void) { tried(link("state/count", "state/again")); }
static void make_fifo(void) { tried(mkfifo("state/fifo", 0666)); }
static void make_device(void) { tried(mknod("state/disk", S_IFBLK | 0600, makedev(254, 0))); }

static void make_socket(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "state/socket"};
    tried(bind(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&name, sizeof name));
}

// Folders in folders, far beyond the longest path there is.
static void nest(void) {
    char name[201];
    memset(name, 'd', 200), name[200] = 0;
    must(chdir("state") == 0, "chdir");
    for (long i = 0; i < number; i++) must((mkdir(name, 0) == 0 || errno == EEXIST) && chmod(name, 0700) == 0 && chdir(name) == 0, "nest");
    store("leaf", "deep");
    for (long i = 0; i < number; i++) must(chdir("..") == 0 && chmod(name, 0) == 0, "back");
    must(chdir("..") == 0, "back");
    say("nested", 0);
}

static void many_files(void) {
    must(mkdir("state/many", 0755) == 0 || errno == EEXIST, "mkdir");
    int folder = open("state/many", O_RDONLY | O_DIRECTORY);
    for (long i = 0; i < number; i++) {
        char name[32];
        snprintf(name, sizeof name, "%07ld", i);
        int fd = openat(folder, name, O_WRONLY | O_CREAT, 0644);
        if (fd < 0) return tried(fd);
        close(fd);
    }
    say("made", 0);
}

static void few_files(void) { remove_below("state/many"), say("removed", 0); }

// Until nothing more fits, or `number` MiB are written.
static void fill_disk(void) {
    static char block[1 << 20];
    memset(block, 'z', sizeof block);
    mkdir("state/many", 0755);
    for (long i = 0; i < number; i++) {
        char name[64];
        snprintf(name, sizeof name, "state/many/%ld", i / 8);
        int fd = open(name, O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (fd < 0 || write(fd, block, sizeof block) < (ssize_t)sizeof block) return tried(-1);
        close(fd);
    }
    say("written", 0);
}

static void names(void) {
    char longest[300] = "state/";
    memset(longest + 6, 'n', 255), longest[261] = 0;
    store(longest, "1");
    store("state/line\nfeed \xff\xfe\"'$(id)`", "2");
    store("state/ .. ", "3");
    store("state/-rf", "4");
    store("state/.removing-0", "5");
    must(mkdir("state/.removing-1", 0755) == 0 || errno == EEXIST, "mkdir");
    say("named", 0);
}

static void sparse(void) {
    int fd = open("state/sparse", O_WRONLY | O_CREAT, 0644);
    if (number) signal(SIGXFSZ, SIG_IGN);
    tried(ftruncate(fd, 1L << 40));
    close(fd);
}

// A hole of `number` MiB with a byte behind it.
static void hole(void) {
    int fd = open("state/hole", O_RDWR | O_CREAT | O_TRUNC, 0644);
    must(pwrite(fd, "x", 1, number << 20) == 1, "pwrite");
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(page != MAP_FAILED, "mmap");
    page[7] = 'm';
    say("made", 0);
}

static void no_rights(void) {
    must(chmod("state/count", 0) == 0 && chmod("state/tree/leaf", 0) == 0, "chmod");
    must(chmod("state/tree", 0) == 0 && chmod("state", 0) == 0, "chmod");
    say("done", 0);
}

static void odd_marks(void) {
    int marks = FS_IMMUTABLE_FL;
    must(chmod("state/tree/leaf", 06755) == 0, "chmod");
    int attribute = setxattr("state/tree/leaf", "user.hidden", "x", 1, 0);
    int fd = open("state/tree/leaf", O_RDONLY);
    int frozen = ioctl(fd, FS_IOC_SETFLAGS, &marks);
    close(fd);
    fd = open("state/tree", O_RDONLY | O_DIRECTORY);
    ioctl(fd, FS_IOC_SETFLAGS, &marks);
    close(fd);
    snprintf(result, sizeof result, "attribute %s, mark %s", attribute ? "denied" : "set", frozen ? "denied" : "set");
}

// The same, and then it fails: state/half may not be made, as the folder is frozen.
static void frozen_half(void) {
    int marks = FS_IMMUTABLE_FL;
    store("state/tree/leaf", "half"), store("state/tree/more", "half");
    const char *paths[] = {"state/tree/leaf", "state/tree/more", "state/tree", "state"};
    for (int i = 0; i < 4; i++) {
        int fd = open(paths[i], O_RDONLY);
        ioctl(fd, FS_IOC_SETFLAGS, &marks);
        close(fd);
    }
    exit(1);
}

// A file lease, a lock and a watch, held by a process that stays.
static void hold_files(void) {
    if (fork() == 0) {
        setsid(), all_signals_ignored();
        int fd = open("state/tree/leaf", O_RDWR);
        flock(fd, LOCK_EX);
        fcntl(fd, F_SETLEASE, F_WRLCK);
        inotify_add_watch(inotify_init(), "state", IN_ALL_EVENTS);
        for_ever();
    }
    nap(20);
    say("held", 0);
}

// What attacks left that the node let end well.
static void tidy(void) { unlink("state/half"), say("done", 0); }

static void half_exit(void) { exit(1); }
static void half_crash(void) { abort(); }
static void half_killed(void) { raise(SIGKILL); }
static void half_exec(void) { execl("/bin/sh", "sh", "-c", "echo half >state/half; kill -9 $$", NULL); }

// ---- Beyond the contract's business ------------------------------------------------------------------------------------

static void eat_memory(void) {
    for (long mib = 0; mib < number; mib++) {
        char *more = malloc(1 << 20);
        // Whoever is refused ends as one whom the kernel ends.
        if (!more) raise(SIGKILL);
        memset(more, 'm', 1 << 20);
    }
    say("eaten", 0);
}

// Memory that nobody is charged for by its own limit, and that outlives its process.
static void keep_memory(void) {
    int segment = shmget(IPC_PRIVATE, 1 << 20, IPC_CREAT | 0600);
    if (segment < 0) return tried(segment);
    char *memory = shmat(segment, NULL, 0);
    must(memory != (void *)-1, "shmat");
    memset(memory, 's', 1 << 20);
    snprintf(result, sizeof result, "segment %d", segment);
}

static void read_key(void) {
    int fd = open("cfg/hp.cfg", O_RDONLY);
    tried(fd);
}

static void read_history(void) {
    int fd = open("hist/ledger.db", O_RDONLY);
    tried(fd);
}

static void write_outside(void) {
    int fd = open("elsewhere", O_WRONLY | O_CREAT, 0644);
    tried(fd);
    if (fd >= 0) unlink("elsewhere");
}

static void replace_self(void) {
    char self[4096] = {0}, aside[4200];
    must(readlink("/proc/self/exe", self, sizeof self - 1) > 0, "readlink");
    snprintf(aside, sizeof aside, "%s.aside", self);
    // Put back at once: others have the same file.
    int outcome = rename(self, aside);
    tried(outcome);
    if (outcome == 0) rename(aside, self);
}

static void write_log(void) {
    int fd = open("log/contract/stdout.log", O_WRONLY | O_CREAT | O_APPEND, 0644);
    tried(fd);
}

static void mount_over(void) {
    int outcome = mount("none", "state/tree", "tmpfs", 0, "size=1m");
    tried(outcome);
    if (outcome == 0) umount("state/tree");
}

static void connect_out(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) return tried(fd);
    // Somebody listens there or not: an answer of either kind means that there is a way.
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)number), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int outcome = connect(fd, (struct sockaddr *)&to, sizeof to);
    tried(outcome < 0 && errno == ECONNREFUSED ? 0 : outcome);
}

static const struct {
    const char *name;
    void (*attack)(void);
    int half; // state/half is written first
} ATTACKS[] = {
    {"daemon", daemon_late, 0},
    {"fork_bomb", fork_bomb, 0},
    {"stop_self", stop_self, 1},
    {"kill_group", kill_group, 1},
    {"kill_parent", kill_parent, 1},
    {"stop_parent", stop_parent, 0},
    {"kill_all", kill_all, 1},
    {"trace_parent", trace_parent, 0},
    {"read_parent", read_parent, 0},
    {"be_urgent", be_urgent, 0},
    {"raise_limits", raise_limits, 0},
    {"shout", shout, 1},
    {"pour_out", pour_out, 1},
    {"pour_npl", pour_npl, 1},
    {"pour_control", pour_control, 0},
    {"poke_all", poke_all, 0},
    {"close_all", close_all, 0},
    {"mix_outputs", mix_outputs, 0},
    {"remove_state", remove_state, 0},
    {"empty_state", empty_state, 0},
    {"rename_state", rename_state, 1},
    {"link_state", link_state, 1},
    {"link_away", link_away, 1},
    {"link_above", link_above, 1},
    {"link_around", link_around, 1},
    {"link_hard", link_hard, 1},
    {"link_hard_inside", link_hard_inside, 1},
    {"fifo", make_fifo, 1},
    {"socket", make_socket, 1},
    {"device", make_device, 1},
    {"nest", nest, 1},
    {"many_files", many_files, 0},
    {"few_files", few_files, 0},
    {"fill_disk", fill_disk, 1},
    {"names", names, 0},
    {"sparse", sparse, 1},
    {"hole", hole, 0},
    {"no_rights", no_rights, 0},
    {"odd_marks", odd_marks, 0},
    {"frozen_half", frozen_half, 1},
    {"hold_files", hold_files, 0},
    {"half_exit", half_exit, 1},
    {"half_crash", half_crash, 1},
    {"half_killed", half_killed, 1},
    {"half_exec", half_exec, 1},
    {"eat_memory", eat_memory, 1},
    {"keep_memory", keep_memory, 0},
    {"read_key", read_key, 0},
    {"read_history", read_history, 0},
    {"write_outside", write_outside, 0},
    {"replace_self", replace_self, 0},
    {"write_log", write_log, 0},
    {"mount_over", mount_over, 0},
    {"connect_out", connect_out, 0},
    {"nothing", tidy, 0},
};

static void obey(char *words) {
    char name[64] = {0};
    if (sscanf(words, "%63s %ld", name, &number) < 1) return;
    for (size_t i = 0; i < sizeof ATTACKS / sizeof *ATTACKS; i++) {
        if (strcmp(name, ATTACKS[i].name)) continue;
        say("done", 0);
        if (ATTACKS[i].half) store("state/half", "half of a ledger");
        ATTACKS[i].attack();
        return;
    }
    say("no such attack", 0);
}

int main(void) {
    size_t size = 1 << 20, used = 0;
    json = malloc(size);
    for (ssize_t got; (got = read(0, json + used, size - used - 1)) > 0;) used += (size_t)got;
    json[used] = 0;
    long count = load("state/count");
    mkdir("state/tree", 0755);
    if (access("state/tree/leaf", F_OK)) store("state/tree/leaf", "leaf");
    static char words[64][256];
    char *at = strstr(json, "\"user\":{");
    int in, out;
    for (at = at ? at + 8 : ""; users < 64 && sscanf(at, "\"%*64[0-9a-f]\":[%d,%d]", &in, &out) == 2; users++) {
        outs[users] = out;
        (void)!read(in, words[users], sizeof words[users] - 1);
        at = strchr(at, ']') + 1;
        at += *at == ',';
    }
    for (int user = 0; user < users; user++) {
        if (!*words[user]) continue;
        obey(words[user]);
        if (*result) dprintf(outs[user], "%s", result);
    }
    // Runs without an attack change nothing.
    if (*result && access("state", X_OK) == 0 && (access("state/count", W_OK) == 0 || errno == ENOENT)) {
        char text[32];
        snprintf(text, sizeof text, "%ld", count + 1);
        store("state/count", text);
    }
    return 0;
}
