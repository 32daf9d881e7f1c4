/*
 * The guest's loop as an ordinary program, for tests of the channel from the host's side: its argument is the
 * number of the descriptor that is the port, or that listens for it. It mounts nothing, sets nothing, and ends nobody but its own children.
 */

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "check.h"
#include "guest.h"

static bool prepare_nothing(const struct config *config, struct failure *failure)
{
    (void)config, (void)failure;
    return true;
}

/* Signal what descends from a process, the youngest first; orphans of ours come back to us, as to pid 1. */
static void signal_descendants(pid_t pid, int number)
{
    char path[64];
    int child;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)pid, (int)pid);
    FILE *children = fopen(path, "r");
    if (!children)
        return;
    while (fscanf(children, "%d", &child) == 1) {
        signal_descendants(child, number);
        kill(child, number);
    }
    fclose(children);
}

static void end_all(void)
{
    signal_descendants(getpid(), SIGKILL);
}

static bool hold(bool on)
{
    signal_descendants(getpid(), on ? SIGSTOP : SIGCONT);
    return true;
}

/* At the second look only, so that a test sees a guest on its way. */
static bool held(void)
{
    static int looks;
    return ++looks % 2 == 0;
}

static void settle_nothing(void)
{
}

/* A host name says whether the guest can become it; the generation shows that the card came. */
static bool renew(const struct identity_card *card, struct failure *failure)
{
    if (card->hostname && !strcmp(card->hostname, "nobody"))
        return fail(failure, "bad-network", "cannot become nobody");
    fprintf(stderr, "generation %llu time %llu entropy %zu\n", (unsigned long long)card->generation,
            (unsigned long long)card->unix_time_ns, card->entropy_length);
    return true;
}

/* The disk says how it goes; what was asked shows on stderr. */
static bool volume(enum order order, unsigned disk, uint64_t size, struct failure *failure)
{
    fprintf(stderr, "order %d disk %u size %llu\n", (int)order, disk, (unsigned long long)size);
    return disk != 9 || fail(failure, "no-volume", "there is no volume on disk %u", disk);
}

static void finish(void)
{
    fprintf(stderr, "finished\n");
}

int main(int argc, char **argv)
{
    static struct guest guest;
    static const struct machine machine = {.prepare = prepare_nothing,
                                           .end_all = end_all,
                                           .hold = hold,
                                           .held = held,
                                           .settle = settle_nothing,
                                           .renew = renew,
                                           .volume = volume,
                                           .finish = finish};
    CHECK(argc == 2 && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    int port = atoi(argv[1]);
    CHECK(fcntl(port, F_SETFL, fcntl(port, F_GETFL) | O_NONBLOCK) == 0);
    CHECK(fcntl(port, F_SETFD, FD_CLOEXEC) == 0);
    CHECK(guest_init(&guest, &machine, port));
    guest_run(&guest);
    printf("dropped %llu\n", (unsigned long long)guest.workload.ring.dropped);
    config_free(&guest.config);
    return 0;
}
