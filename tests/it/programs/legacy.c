// A contract of Hot Pocket 0.1: it knows the keys of that version, in its order, and ends with 7 when one is not as it
// was. Answers every user "<inputs so far, all users> <its input>" and keeps the count in state/count.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char json[1 << 20], input[1 << 20];

static char *key(const char *text) {
    char *at = strstr(json, text);
    if (!at) {
        fprintf(stderr, "no %s in %s\n", text, json);
        exit(7);
    }
    return at + strlen(text);
}

static size_t read_all(int fd, char *to, size_t size) {
    size_t used = 0;
    ssize_t got;
    while ((got = read(fd, to + used, size - used - 1)) > 0) used += (size_t)got;
    to[used] = 0;
    return used;
}

int main(int argc, char **argv) {
    int npl[2], in, out, bytes = 0;
    long time, count = 0;
    char us[65];
    read_all(0, json, sizeof json);
    if (argc != 1 || strcmp(argv[0] + strlen(argv[0]) - 12, "bin/contract") || strncmp(key("\"hotpocket\":"), "0.1,", 4)) exit(7);
    if (strspn(key("\"lcl\":\""), "0123456789abcdef") != 64 || strncmp(key("\"mver\":"), "1,", 2)) exit(7);
    if (sscanf(key("\"npl\":"), "[%d,%d]", &npl[0], &npl[1]) != 2) exit(7);
    if (sscanf(key("\"pubkey\":\""), "%64[0-9a-f]", us) != 1 || !strstr(key("\"unl\":["), us)) exit(7);
    if (sscanf(key("\"time\":\""), "%ld%n", &time, &bytes) != 1 || time < 1500000000) exit(7);
    if (strncmp(key("\"type\":\""), "binexec\"", 8)) exit(7);
    close(npl[1]);

    FILE *kept = fopen("state/count", "r");
    if (kept && fscanf(kept, "%ld", &count) != 1) exit(7);
    if (kept) fclose(kept);
    for (char *at = key("\"user\":{"); sscanf(at, "\"%*64[0-9a-f]\":[%d,%d]%n", &in, &out, &bytes) == 2; at += bytes + 1) {
        if (read_all(in, input, sizeof input) > 0) dprintf(out, "%ld %s", ++count, input);
        if (at[bytes] != ',') break;
    }
    kept = fopen("state/count", "w");
    fprintf(kept, "%ld", count);
    return fclose(kept);
}
