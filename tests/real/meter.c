/* How much passes in a second, as a guest sees it. Prints bytes, operations and microseconds of what was measured.
 *
 *   meter wait                        until SIGTERM
 *   meter disk read|write BLOCK SECONDS   on a file of its own, past the guest's page cache
 *   meter sink PORT SECONDS           what a peer that connects sends
 *   meter source PORT                 sends to a peer that connects, until it goes away
 *   meter hold MIB                    touches so much memory, and gives it back when stdin ends
 *
 * The first second is not measured: a bucket that is still full lets more pass. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FILE_BYTES = 4 << 20 };

static long long now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

/* Call `pass`, which returns how many bytes passed or nothing at the end, for so many seconds after the first. */
static int measure(long (*pass)(void *), void *with, int seconds)
{
    long long begun = now_us() + 1000000, bytes = 0, operations = 0;
    for (;;) {
        long passed = pass(with);
        long long now = now_us();
        if (passed <= 0)
            return 1;
        if (now < begun)
            continue;
        if (operations++ == 0)
            begun = now; /* from one end to the next: what began before is not counted */
        else
            bytes += passed;
        if (now - begun >= seconds * 1000000LL) {
            printf("%lld %lld %lld\n", bytes, operations - 1, now - begun);
            return 0;
        }
    }
}

struct disk {
    int file;
    int writing;
    long block;
    long long at;
    void *buffer;
};

static long pass_disk(void *with)
{
    struct disk *disk = with;
    long long at = disk->at;
    disk->at = (at + disk->block) % FILE_BYTES;
    return disk->writing ? pwrite(disk->file, disk->buffer, disk->block, at)
                         : pread(disk->file, disk->buffer, disk->block, at);
}

static int measure_disk(const char *way, long block, int seconds)
{
    struct disk disk = {.writing = !strcmp(way, "write"), .block = block};
    if (posix_memalign(&disk.buffer, 4096, FILE_BYTES))
        return 1;
    memset(disk.buffer, 'x', FILE_BYTES);
    disk.file = open("/measured", O_RDWR | O_CREAT | O_DIRECT, 0600);
    if (disk.file < 0 || pwrite(disk.file, disk.buffer, FILE_BYTES, 0) != FILE_BYTES || fsync(disk.file))
        return 1; /* written once before, so that no block has to be found while it is measured */
    return measure(pass_disk, &disk, seconds);
}

static int accepted(int port)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 1))
        return -1;
    return accept(listener, NULL, NULL);
}

static long pass_in(void *with)
{
    static char buffer[65536];
    return recv(*(int *)with, buffer, sizeof buffer, 0);
}

static int send_all(int peer)
{
    static char buffer[65536];
    while (send(peer, buffer, sizeof buffer, MSG_NOSIGNAL) > 0)
        ;
    return 0;
}

static int hold(long mebibytes)
{
    char *memory = mmap(NULL, mebibytes << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    for (long at = 0; at < mebibytes << 20; at += 4096)
        memory[at] = 1 + at % 251;
    puts("held");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    munmap(memory, mebibytes << 20);
    return 0;
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "disk") && argc == 5)
        return measure_disk(argv[2], atol(argv[3]), atoi(argv[4]));
    if (!strcmp(verb, "hold") && argc == 3)
        return hold(atol(argv[2]));
    if (!strcmp(verb, "sink") && argc == 4) {
        int peer = accepted(atoi(argv[2]));
        return peer < 0 ? 1 : measure(pass_in, &peer, atoi(argv[3]));
    }
    if (!strcmp(verb, "source") && argc == 3) {
        int peer = accepted(atoi(argv[2]));
        return peer < 0 ? 1 : send_all(peer);
    }
    if (strcmp(verb, "wait"))
        return 2;
    sigset_t terms;
    int number;
    sigemptyset(&terms);
    sigaddset(&terms, SIGTERM);
    sigprocmask(SIG_BLOCK, &terms, NULL);
    puts("waiting");
    fflush(stdout);
    return sigwait(&terms, &number);
}
