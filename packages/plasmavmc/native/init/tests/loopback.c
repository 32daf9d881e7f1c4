/*
 * The guest's loop as an ordinary program, for tests of the channel from the host's side: its argument is the
 * number of the descriptor that is the port. It mounts nothing, sets nothing, and ends nobody but its own children.
 */

#include <fcntl.h>

#include "check.h"
#include "guest.h"

static bool prepare_nothing(const struct config *config, struct failure *failure)
{
    (void)config, (void)failure;
    return true;
}

static void end_nobody(void)
{
}

int main(int argc, char **argv)
{
    static struct guest guest;
    static const struct machine machine = {.prepare = prepare_nothing, .end_all = end_nobody};
    CHECK(argc == 2);
    int port = atoi(argv[1]);
    CHECK(fcntl(port, F_SETFL, fcntl(port, F_GETFL) | O_NONBLOCK) == 0);
    CHECK(fcntl(port, F_SETFD, FD_CLOEXEC) == 0);
    CHECK(guest_init(&guest, &machine, port));
    guest_run(&guest);
    printf("dropped %llu\n", (unsigned long long)guest.workload.ring.dropped);
    config_free(&guest.config);
    return 0;
}
