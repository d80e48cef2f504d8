// A contract that writes down what it was given: every input once, in order, with its user. Inputs are lines.
//
// State: state/log, a line "<first 8 digits of the user's key> <line>" for each line ever read;
//        state/ledgers, a line "<ledger> <lines>" for each ledger with any.
// A user's output is its own input, as it came. A line "push" is shown to every user that is connected.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *read_all(int fd, size_t *used) {
    size_t size = 1 << 16;
    char *text = malloc(size);
    ssize_t got;
    for (*used = 0; (got = read(fd, text + *used, size - *used - 1)) > 0;) {
        *used += (size_t)got;
        if (size - *used < 4096) text = realloc(text, size *= 2);
    }
    text[*used] = 0;
    return text;
}

static void write_all(int fd, const char *text, size_t length) {
    while (length > 0) {
        ssize_t done = write(fd, text, length);
        if (done < 0) exit(9);
        text += done;
        length -= (size_t)done;
    }
}

int main(void) {
    size_t length;
    char *json = read_all(0, &length);
    FILE *log = fopen("state/log", "a");
    if (!log) exit(9);
    char *seq = strstr(json, "\"seq\":");
    char *users = strstr(json, "\"user\":{");
    int in, out, push = 0;
    long lines = 0;
    for (char *at = users + 8; sscanf(at, "\"%*64[0-9a-f]\":[%d,%d]", &in, &out) == 2;) {
        char *input = read_all(in, &length);
        write_all(out, input, length);
        for (char *line = input, *end; (end = strchr(line, '\n')); line = end + 1, lines++) {
            fprintf(log, "%.8s %.*s\n", at + 1, (int)(end - line), line);
            push |= end - line == 4 && !strncmp(line, "push", 4);
        }
        free(input);
        at = strchr(at, ']') + 1;
        if (*at == ',') at++;
    }
    for (char *at = users + 8; push && sscanf(at, "\"%*64[0-9a-f]\":[%d,%d]", &in, &out) == 2;) {
        write_all(out, "pushed\n", 7);
        at = strchr(at, ']') + 1;
        if (*at == ',') at++;
    }
    if (fclose(log)) exit(9);
    if (lines > 0) {
        FILE *ledgers = fopen("state/ledgers", "a");
        if (!ledgers) exit(9);
        fprintf(ledgers, "%ld %ld\n", seq ? atol(seq + 6) : 0, lines);
        if (fclose(ledgers)) exit(9);
    }
    return 0;
}
