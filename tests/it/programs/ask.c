// The contract of the tests of read-only runs.
//
// A run of a ledger writes its number, counted in the state, into eight files, slowly and one after the other: whoever sees
// two numbers has seen half a run. A read-only run answers "<number> <seq> <files in state/>", or "torn". A question that is
// one of these words does more first:
//   write   changes, adds, links, unlocks and removes files of the state, and leaves one in bin/, tmp/ and the folder
//   npl     reads the party line to its end, says something on it, and asks for another UNL
//   hang    sleeps for ever
//   fork    leaves processes behind, in sessions of their own
//   flood   writes without end
//   fail    exits with 3
//   pile    writes a file of 32 MB
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES = 8, NUMBERS = 9000 };

static char json[1 << 20];

static long long number_of(int file) {
    static long long numbers[NUMBERS];
    char path[32];
    snprintf(path, sizeof path, "state/%d", file);
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    ssize_t got = read(fd, numbers, sizeof numbers);
    close(fd);
    if (got != sizeof numbers) return -1;
    for (int i = 1; i < NUMBERS; i++)
        if (numbers[i] != numbers[0]) return -1;
    return numbers[0];
}

static void write_number(int file, long long number) {
    static long long numbers[NUMBERS];
    char path[32];
    for (int i = 0; i < NUMBERS; i++) numbers[i] = number;
    snprintf(path, sizeof path, "state/%d", file);
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    if (fd < 0 || write(fd, numbers, sizeof numbers) != sizeof numbers) exit(9);
    close(fd);
}

static int count(const char *folder) {
    DIR *dir = opendir(folder);
    int count = 0;
    while (dir && readdir(dir)) count++;
    if (dir) closedir(dir);
    return count - 2;
}

static void put(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd >= 0 && write(fd, "x", 1) == 1) close(fd);
}

static void obey(const char *word, int out) {
    if (!strcmp(word, "write")) {
        write_number(0, 1);
        put("state/litter");
        put("bin/litter");
        put("tmp/litter");
        put("litter");
        if (mkdir("state/folder", 0700) || mkfifo("state/folder/fifo", 0600)) exit(8);
        if (link("state/1", "state/second") || symlink("/etc", "state/etc") || unlink("state/2")) exit(7);
        if (chmod("state/3", 0) || chmod("state", 0500)) exit(6);
    }
    if (!strcmp(word, "npl")) {
        int npl[2], control;
        char byte;
        if (sscanf(strstr(json, "\"npl\":["), "\"npl\":[%d,%d]", &npl[0], &npl[1]) != 2) exit(9);
        if (sscanf(strstr(json, "\"control\":"), "\"control\":%d", &control) != 1) exit(9);
        if (write(npl[1], "hello", 5) != 5 || read(npl[0], &byte, 1) != 0) exit(5);
        dprintf(control, "unl remove %.64s\n", strstr(json, "\"pubkey\":\"") + 10);
    }
    if (!strcmp(word, "hang"))
        for (;;) pause();
    if (!strcmp(word, "fork"))
        for (int i = 0; i < 5; i++)
            if (fork() == 0) {
                setsid();
                for (;;) pause();
            }
    if (!strcmp(word, "flood"))
        for (;;)
            if (write(out, json, sizeof json) < 0) exit(9);
    if (!strcmp(word, "fail")) exit(3);
    if (!strcmp(word, "pile")) {
        int fd = open("state/pile", O_WRONLY | O_CREAT, 0644);
        for (int i = 0; i < 32; i++)
            if (write(fd, json, sizeof json) != sizeof json) exit(9);
    }
}

int main(void) {
    size_t used = 0;
    ssize_t got;
    while ((got = read(0, json + used, sizeof json - used - 1)) > 0) used += (size_t)got;
    if (strstr(json, "\"readonly\":false")) {
        long long number = number_of(0) + 1;
        for (int file = 0; file < FILES; file++) {
            write_number(file, number);
            usleep(1000);
        }
        int in, out;
        char *at = strstr(json, "\"user\":{") + 8;
        while (sscanf(at, "\"%*64[0-9a-f]\":[%d,%d]", &in, &out) == 2) {
            char byte;
            if (read(in, &byte, 1) == 1) dprintf(out, "%lld", number);
            at = strchr(at, ']') + 1;
            if (*at == ',') at++;
        }
        return 0;
    }
    int in, out;
    long long seq;
    char word[64] = {0};
    if (sscanf(strstr(json, "\"user\":{") + 8, "\"%*64[0-9a-f]\":[%d,%d]", &in, &out) != 2) exit(9);
    if (sscanf(strstr(json, "\"seq\":"), "\"seq\":%lld", &seq) != 1) exit(9);
    if (read(in, word, sizeof word - 1) < 0) exit(9);
    long long number = number_of(0);
    for (int file = 1; file < FILES; file++)
        if (number_of(file) != number) number = -1;
    if (number < 0) dprintf(out, "torn");
    else dprintf(out, "%lld %lld %d", number, seq, count("state"));
    obey(word, out);
    return 0;
}
