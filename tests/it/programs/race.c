/* A contract in which several threads write to one file, each when it comes to it. */
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

enum { THREADS = 4, LETTERS = 200 };

static int file;

static void *write_letters(void *letter) {
    for (int i = 0; i < LETTERS; i++)
        if (write(file, letter, 1) != 1) _exit(2);
    return NULL;
}

int main(void) {
    static char letters[] = "abcd";
    pthread_t threads[THREADS];
    file = open("state/x", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, write_letters, &letters[i]);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    return 0;
}
