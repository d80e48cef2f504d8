// The contract of the cluster tests: counts what it reads, and misbehaves when it is told to.
//
// State: state/inputs (bytes ever read), state/runs (runs that ended well). A user's output is
// "<bytes read now> <bytes ever read>". An input that begins with one of these words does more:
//   fail    writes half of the state and exits with 3
//   hang    writes half of the state and sleeps for ever
//   wait    goes on only when a file "gate" appears in the contract folder
//   nap     takes three seconds where a file "slow" is in the contract folder
//   loud    writes 1 MB to stdout and to stderr
//   folder  writes state/deep/er/file
//   differ  writes this node's own key into state/differ: another content on every node
//   daemon  leaves a process behind that would write to state/late
//   npl     says hello on the party line and exits without reading it
//   talk    says hello on the party line, reads it to its end, and tells stdout how many it heard
//   roll    the same, but it reads only when a file "gate" appears in the contract folder
//   unl     writes the whole input to the network as a request
//   who     keeps the keys of the UNL in state/unl
//   fifo    leaves something in state/ that nodes cannot agree on
//   big     writes 1 MB to the user before its output
//   dump    keeps what it was given, JSON and environment, in state/
//   grow    writes 4 MB to state/grown, no two blocks alike
//   odd     keeps the name of its own executable in state/odd
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *json, *self;
extern char **environ;

static void read_json(void) {
    size_t size = 1 << 16, used = 0;
    json = malloc(size);
    ssize_t got;
    while ((got = read(0, json + used, size - used - 1)) > 0) {
        used += (size_t)got;
        if (size - used < 4096) json = realloc(json, size *= 2);
    }
    json[used] = 0;
}

static long long load(const char *path) {
    char text[64] = {0};
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    if (read(fd, text, sizeof text - 1) < 0) exit(9);
    close(fd);
    return atoll(text);
}

static void store(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) exit(9);
    close(fd);
}

static void store_number(const char *path, long long number) {
    char text[64];
    snprintf(text, sizeof text, "%lld", number);
    store(path, text);
}

static int party_line(void) {
    int fds[2];
    char *npl = strstr(json, "\"npl\":[");
    if (sscanf(npl, "\"npl\":[%d,%d]", &fds[0], &fds[1]) != 2 || write(fds[1], "hello", 5) < 0) exit(9);
    close(fds[1]);
    return fds[0];
}

static void request(const char *line) {
    int fd;
    if (sscanf(strstr(json, "\"control\":"), "\"control\":%d", &fd) != 1) exit(9);
    if (write(fd, line, strlen(line)) < 0) exit(9);
}

static void obey(const char *word, const char *half, int out) {
    if (!strncmp(word, "fail", 4)) {
        store("state/inputs", half);
        exit(3);
    }
    if (!strncmp(word, "hang", 4)) {
        store("state/inputs", half);
        for (;;) pause();
    }
    if (!strncmp(word, "wait", 4)) {
        store("state/inputs", half);
        while (access("gate", F_OK)) usleep(10000);
    }
    if (!strncmp(word, "nap", 3)) {
        store("state/inputs", half);
        if (!access("slow", F_OK)) sleep(3);
    }
    if (!strncmp(word, "big", 3)) {
        static char much[1000000];
        memset(much, 'y', sizeof much);
        for (size_t done = 0; done < sizeof much;) {
            ssize_t some = write(out, much + done, sizeof much - done);
            if (some < 0) exit(9);
            done += (size_t)some;
        }
    }
    if (!strncmp(word, "dump", 4)) {
        store("state/json", json);
        for (char **variable = environ; *variable; variable++) {
            int fd = open("state/environment", O_WRONLY | O_CREAT | O_APPEND, 0644);
            dprintf(fd, "%s\n", *variable);
            close(fd);
        }
    }
    if (!strncmp(word, "odd", 3)) store("state/odd", strrchr(self, '/'));
    if (!strncmp(word, "grow", 4)) {
        FILE *grown = fopen("state/grown", "w");
        for (unsigned at = 0; at < 1 << 20; at++) fwrite(&at, sizeof at, 1, grown);
        fclose(grown);
    }
    if (!strncmp(word, "loud", 4)) {
        static char noise[1 << 20];
        memset(noise, 'x', sizeof noise);
        if (write(1, noise, sizeof noise) < 0 || write(2, noise, sizeof noise) < 0) exit(9);
    }
    if (!strncmp(word, "folder", 6)) {
        mkdir("state/deep", 0755);
        mkdir("state/deep/er", 0755);
        store("state/deep/er/file", "in a sub-folder");
    }
    if (!strncmp(word, "differ", 6)) {
        char *key = strstr(json, "\"pubkey\":\"");
        char text[65] = {0};
        memcpy(text, key + 10, 64);
        store("state/differ", text);
    }
    if (!strncmp(word, "daemon", 6) && fork() == 0) {
        setsid();
        if (fork() == 0) {
            for (;;) sleep(1), store("state/late", "written after the run");
        }
        _exit(0);
    }
    if (!strncmp(word, "unl ", 4)) request(word);
    if (!strncmp(word, "who", 3)) {
        char *list = strstr(json, "\"unl\":[") + 6, *end = strchr(list, ']') + 1;
        *end = 0;
        store("state/unl", list);
        *end = ',';
    }
    if (!strncmp(word, "npl", 3)) party_line();
    if (!strncmp(word, "talk", 4) || !strncmp(word, "roll", 4)) {
        FILE *line = fdopen(party_line(), "r");
        if (*word == 'r') store("state/inputs", half);
        while (*word == 'r' && access("gate", F_OK)) usleep(10000);
        int heard = 0, bytes;
        char who[65], text[64];
        while (fscanf(line, "Length: %d\nPubkey: %64[0-9a-f]\n\n", &bytes, who) == 2) {
            if (bytes != 5 || fread(text, 1, 5, line) != 5 || memcmp(text, "hello", 5)) exit(9);
            heard++;
        }
        printf("heard %d\n", heard);
        fflush(stdout);
    }
    if (!strncmp(word, "fifo", 4)) {
        store("state/inputs", half);
        mkfifo("state/fifo", 0644);
    }
}

int main(int argc, char **argv) {
    self = argc > 0 ? argv[0] : "/";
    read_json();
    long long ever = load("state/inputs");
    char *users = strstr(json, "\"user\":{");
    char word[200];
    int in, out;
    char *at = users ? users + 8 : "";
    static char block[1 << 16];
    while (sscanf(at, "\"%*64[0-9a-f]\":[%d,%d]", &in, &out) == 2) {
        long long now = 0;
        ssize_t got;
        memset(word, 0, sizeof word);
        while ((got = read(in, block, sizeof block)) > 0) {
            for (ssize_t i = 0; i < got && now + i < (ssize_t)sizeof word - 1; i++) word[now + i] = block[i];
            now += got;
        }
        ever += now;
        if (now > 0) {
            obey(word, "half", out);
            dprintf(out, "%lld %lld", now, ever);
        }
        at = strchr(at, ']') + 1;
        if (*at == ',') at++;
    }
    store_number("state/inputs", ever);
    store_number("state/runs", load("state/runs") + 1);
    return 0;
}
