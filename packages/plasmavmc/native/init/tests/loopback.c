/*
 * The guest's loop as an ordinary program, for tests of the channel from the host's side: its argument is the
 * number of the descriptor that is the port. It mounts nothing, sets nothing, and ends nobody but its own children.
 */

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "check.h"
#include "guest.h"

static bool prepare_nothing(const struct config *config, struct failure *failure)
{
    (void)config, (void)failure;
    return true;
}

/* Kill what descends from a process; orphans of ours come back to us, as to pid 1. */
static void end_descendants(pid_t pid)
{
    char path[64];
    int child;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)pid, (int)pid);
    FILE *children = fopen(path, "r");
    if (!children)
        return;
    while (fscanf(children, "%d", &child) == 1) {
        end_descendants(child);
        kill(child, SIGKILL);
    }
    fclose(children);
}

static void end_all(void)
{
    end_descendants(getpid());
}

int main(int argc, char **argv)
{
    static struct guest guest;
    static const struct machine machine = {.prepare = prepare_nothing, .end_all = end_all};
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
