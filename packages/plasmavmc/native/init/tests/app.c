/* A workload for boot tests: one static program that is a whole image. Its first argument says what it does. */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t terminated;

static void on_terminate(int number)
{
    terminated = number;
}

static void pause_ms(long milliseconds)
{
    struct timespec pause = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* Wait for SIGTERM, then end with `code`. */
static int serve(int code)
{
    signal(SIGTERM, on_terminate);
    puts("serving");
    fputs("an error line\n", stderr);
    fflush(stdout);
    while (!terminated)
        pause();
    puts("last words");
    return code;
}

static _Noreturn void ignore_termination(void)
{
    signal(SIGTERM, SIG_IGN);
    puts("deaf");
    fflush(stdout);
    for (;;)
        pause();
}

/* Numbered lines of 100 bytes, `kib` KiB a second for `seconds`; the last says how often a write had to wait long. */
static int flood(int kib, int seconds)
{
    char line[101];
    int number = 0, waits = 0;
    for (int tick = 0; tick < seconds * 20; tick++) {
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        for (int lines = kib * 1024 / 20 / 100; lines > 0; lines--) {
            snprintf(line, sizeof line, "%08d %.90s\n", number++,
                     "..........................................................................................");
            if (write(STDOUT_FILENO, line, strlen(line)) < 0)
                return 1;
        }
        clock_gettime(CLOCK_MONOTONIC, &after);
        waits += after.tv_sec - before.tv_sec > 1;
        pause_ms(50);
    }
    printf("flood over: %d lines, %d waits\n", number, waits);
    return 0;
}

static void show_file(const char *path)
{
    char text[512];
    int fd = open(path, O_RDONLY);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    struct stat info = {0};
    stat(path, &info);
    if (length < 0)
        printf("%s: %s\n", path, strerror(errno));
    else
        printf("%s %o %.*s\n", path, (unsigned)info.st_mode & 07777, (int)length, text);
    if (fd >= 0)
        close(fd);
}

/* As a server does that logs to /dev/stdout: open it anew, by its name. */
static int write_to(const char *path)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0)
        return fprintf(stderr, "%s: %s\n", path, strerror(errno)), 1;
    return write(fd, "written\n", 8) != 8;
}

static void show_descriptors(void)
{
    for (int fd = 0; fd < 256; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            printf("fd %d\n", fd);
}

static void show_identity(void)
{
    gid_t groups[64];
    int count = getgroups(64, groups);
    printf("uid %d gid %d groups", (int)getuid(), (int)getgid());
    for (int i = 0; i < count; i++)
        printf(" %d", (int)groups[i]);
    printf("\nsession %d cwd %s\n", getsid(0) == getpid(), getcwd(NULL, 0));
}

static int copy_input(void)
{
    char bytes[4096];
    for (ssize_t length; (length = read(STDIN_FILENO, bytes, sizeof bytes)) > 0;)
        if (write(STDOUT_FILENO, bytes, (size_t)length) != length)
            return 1;
    return 0;
}

/* Take memory until the kernel objects. */
static int eat_memory(void)
{
    for (;;) {
        char *piece = malloc(1 << 20);
        if (!piece)
            return 1;
        memset(piece, 1, 1 << 20);
    }
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "serve";
    int number = argc > 2 ? atoi(argv[2]) : 0;
    if (!strcmp(verb, "serve"))
        return serve(number);
    if (!strcmp(verb, "deaf"))
        ignore_termination();
    if (!strcmp(verb, "exit"))
        return printf("leaving with %d\n", number), number;
    if (!strcmp(verb, "flood"))
        return flood(number, argc > 3 ? atoi(argv[3]) : 1);
    if (!strcmp(verb, "cat"))
        return copy_input();
    if (!strcmp(verb, "eat"))
        return eat_memory();
    if (!strcmp(verb, "id"))
        return show_identity(), 0;
    if (!strcmp(verb, "fds"))
        return show_descriptors(), 0;
    if (!strcmp(verb, "env"))
        for (char **variable = environ; *variable; variable++)
            puts(*variable);
    if (!strcmp(verb, "show"))
        for (int i = 2; i < argc; i++)
            show_file(argv[i]);
    if (!strcmp(verb, "write") && argc > 2)
        return write_to(argv[2]);
    if (!strcmp(verb, "tty"))
        printf("tty %d\n", isatty(0));
    return 0;
}
