/* Echo: each user gets back what they sent, byte for byte; in capitals when the first argument is "upper".
 *
 * Build: contracts/build echo DESTDIR. Interface: contracts/README.md.
 *
 * Input is passed on piece by piece, so that any size takes the same memory. No JSON library: of the object on
 * stdin only "user" matters here, and everything before it is stepped over with care for strings and nesting. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE_BYTES = 64 * 1024, FD_MAX = 1 << 24 };

static _Noreturn void fail(const char *reason)
{
    /* Nobody can be told when even stderr fails. */
    if (write(2, "echo: ", 6) < 0 || write(2, reason, strlen(reason)) < 0 || write(2, "\n", 1) < 0)
        _exit(2);
    _exit(1);
}

/* Like read(2), but not stopped by a signal. 0 is the end. */
static size_t read_some(int fd, char *into, size_t room)
{
    for (;;) {
        ssize_t n = read(fd, into, room);
        if (n >= 0)
            return (size_t)n;
        if (errno != EINTR)
            fail("cannot read");
    }
}

static void write_all(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, bytes, len);
        if (n >= 0) {
            bytes += n;
            len -= (size_t)n;
        } else if (errno != EINTR) {
            fail("cannot write to a user");
        }
    }
}

/* Everything on stdin, ended with NUL, at which every function below stops. */
static char *read_stdin(void)
{
    size_t len = 0, room = PIECE_BYTES;
    char *text = malloc(room);
    while (text) {
        size_t n = read_some(0, text + len, room - len - 1);
        text[len += n] = '\0';
        if (n == 0)
            return text;
        if (len + 1 == room)
            text = realloc(text, room *= 2);
    }
    fail("out of memory");
}

static const char *skip_space(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

/* Steps over this character and the space around it. */
static const char *expect(const char *at, char character)
{
    at = skip_space(at);
    if (*at != character)
        fail("stdin is not the JSON object of a ledger");
    return skip_space(at + 1);
}

static const char *skip_string(const char *at)
{
    if (*at != '"')
        fail("stdin: expected a string");
    for (at++; *at != '"'; at++) {
        if (*at == '\\')
            at++;
        if (*at == '\0')
            fail("stdin: a string does not end");
    }
    return at + 1;
}

static const char *skip_value(const char *at)
{
    size_t depth = 0;
    do {
        at = skip_space(at);
        if (*at == '\0')
            fail("stdin: the object does not end");
        if (*at == '"') {
            at = skip_string(at);
        } else if (*at == '{' || *at == '[') {
            depth++;
            at++;
        } else if (*at == '}' || *at == ']') {
            if (depth-- == 0)
                fail("stdin: a value is missing");
            at++;
        } else if (*at == ',' || *at == ':') {
            if (depth == 0)
                fail("stdin: a value is missing");
            at++;
        } else {
            at += strcspn(at, "\",:{}[] \t\r\n");
        }
    } while (depth > 0);
    return at;
}

static const char *parse_fd(const char *at, int *fd)
{
    char *end;
    errno = 0;
    long number = strtol(at, &end, 10);
    if (end == at || errno != 0 || number < 0 || number > FD_MAX)
        fail("stdin: expected the number of a descriptor");
    *fd = (int)number;
    return end;
}

static void echo(int input, int output, int upper)
{
    static char piece[PIECE_BYTES];
    size_t n;
    while ((n = read_some(input, piece, sizeof piece)) > 0) {
        if (upper)
            for (size_t i = 0; i < n; i++)
                if (piece[i] >= 'a' && piece[i] <= 'z')
                    piece[i] -= 'a' - 'A';
        write_all(output, piece, n);
    }
}

/* At the value of "user": {"<64 hex>": [input, output], ...}. */
static void echo_users(const char *at, int upper)
{
    at = expect(at, '{');
    while (*at != '}') {
        int input, output;
        at = expect(skip_string(at), ':');
        at = parse_fd(expect(at, '['), &input);
        at = parse_fd(expect(at, ','), &output);
        at = expect(at, ']');
        echo(input, output, upper);
        if (*at != '}')
            at = expect(at, ',');
    }
}

int main(int argc, char **argv)
{
    const int upper = argc > 1 && strcmp(argv[1], "upper") == 0;
    const char *at = expect(read_stdin(), '{');
    while (*at != '}') {
        const char *key = at;
        at = expect(skip_string(at), ':');
        if (strncmp(key, "\"user\"", 6) == 0) {
            echo_users(at, upper);
            return 0;
        }
        at = skip_space(skip_value(at));
        if (*at != '}')
            at = expect(at, ',');
    }
    fail("stdin: no \"user\" in the object");
}
