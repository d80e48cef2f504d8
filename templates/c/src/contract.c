/* Notes: keeps one note for each user. README.md says what users send.
 *
 * Runs once per ledger: one JSON object on stdin, a pair of descriptors for each user in it, state/ as the run before left
 * it. Every failure of the machine ends the run with an error; what users send never does. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>

#define NOTES "state/notes" /* one file for each note, named by its user's key */

enum {
    KEY_DIGITS = 64,
    NOTE_BYTES_MAX = 200,
    NOTES_MAX = 10000, /* further users get an error: a key costs nothing, so somebody may have any number of them */
    COMMANDS_MAX = 100 /* of one user in one ledger */
};

struct user {
    char key[KEY_DIGITS + 1];
    int input, output;
};

static _Noreturn void fail(const char *what)
{
    perror(what); /* stderr is this node's log */
    exit(1);
}

/* Everything on stdin, ended with NUL. */
static char *read_ledger(void)
{
    size_t len = 0, room = 1 << 16;
    char *text = malloc(room);
    while (text) {
        len += fread(text + len, 1, room - len - 1, stdin);
        if (ferror(stdin))
            fail("stdin");
        if (feof(stdin)) {
            text[len] = '\0';
            return text;
        }
        if (len + 1 == room)
            text = realloc(text, room *= 2);
    }
    fail("memory");
}

/* The next of the users, each `"<64 hex>":[<input>,<output>]`; `at` moves behind it. They come sorted by key: whose turn it
 * is must be the same on every node. */
static int next_user(const char **at, struct user *user)
{
    int length = 0;
    if (**at == ',')
        ++*at;
    if (sscanf(*at, "\"%64[0-9a-f]\":[%d,%d]%n", user->key, &user->input, &user->output, &length) != 3 || length == 0)
        return 0;
    *at += length;
    return 1;
}

static int count_notes(void)
{
    int notes = 0;
    DIR *folder = opendir(NOTES);
    if (!folder)
        fail(NOTES);
    for (struct dirent *entry; (entry = readdir(folder));)
        notes += entry->d_name[0] != '.';
    closedir(folder);
    return notes;
}

static void set_note(const char *path, const char *text, size_t len, int readonly, FILE *output)
{
    struct stat is;
    if (len < 1 || len > NOTE_BYTES_MAX) {
        fprintf(output, "error: a note has 1 to %d bytes\n", NOTE_BYTES_MAX);
    } else if (readonly) {
        fputs("error: a question changes nothing, send it as an input\n", output);
    } else if (stat(path, &is) != 0 && count_notes() >= NOTES_MAX) {
        fputs("error: there are too many notes\n", output);
    } else {
        FILE *note = fopen(path, "w");
        if (!note || fwrite(text, 1, len, note) != len || fclose(note) != 0)
            fail(path);
        fputs("ok\n", output);
    }
}

static void get_note(const char *path, FILE *output)
{
    char text[NOTE_BYTES_MAX];
    FILE *note = fopen(path, "r");
    if (!note && errno != ENOENT)
        fail(path);
    if (!note) {
        fputs("nothing\n", output);
        return;
    }
    fwrite(text, 1, fread(text, 1, sizeof text, note), output);
    fclose(note);
    fputc('\n', output);
}

static int is(const char *line, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(line, word, len) == 0;
}

static void answer(const struct user *user, const char *line, size_t len, int readonly, FILE *output)
{
    char path[sizeof NOTES + 1 + KEY_DIGITS];
    snprintf(path, sizeof path, NOTES "/%s", user->key);
    if (is(line, len, "set"))
        set_note(path, "", 0, readonly, output);
    else if (len >= 4 && memcmp(line, "set ", 4) == 0)
        set_note(path, line + 4, len - 4, readonly, output);
    else if (is(line, len, "get"))
        get_note(path, output);
    else if (is(line, len, "count"))
        fprintf(output, "%d notes\n", count_notes());
    else
        fputs("error: expected set TEXT, get or count\n", output);
}

/* All inputs of a user for this ledger arrive joined, so it is up to us to find the borders: a line feed ends a command. */
static void serve(const struct user *user, int readonly)
{
    FILE *input = fdopen(user->input, "r"), *output = fdopen(user->output, "w");
    char *line = NULL;
    size_t room = 0;
    ssize_t len;
    int commands = 0;
    if (!input || !output)
        fail("a user's descriptors");
    while ((len = getline(&line, &room, input)) > 0) {
        while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r'))
            len--;
        if (strspn(line, " \t\r\n") >= (size_t)len)
            continue;
        if (commands++ == COMMANDS_MAX) {
            fprintf(output, "error: at most %d commands at once, the others were not done\n", COMMANDS_MAX);
            break;
        }
        answer(user, line, (size_t)len, readonly, output);
    }
    free(line);
    fclose(input);
    if (ferror(output) | fclose(output))
        fail("output");
}

int main(void)
{
    char *ledger = read_ledger();
    /* The node writes the object without spaces, and no quote without a backslash within a text: so these are keys. */
    const int readonly = strstr(ledger, "\"readonly\":true") != NULL;
    const char *at = strstr(ledger, "\"user\":{");
    if (!at) {
        fputs("stdin: no \"user\" in the object\n", stderr);
        return 1;
    }
    at += strlen("\"user\":{");
    if (mkdir(NOTES, 0777) != 0 && errno != EEXIST)
        fail(NOTES);
    for (struct user user; next_user(&at, &user);)
        serve(&user, readonly);
    free(ledger);
    return 0;
}
