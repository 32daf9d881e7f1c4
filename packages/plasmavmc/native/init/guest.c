#include "guest.h"

#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"

bool guest_init(struct guest *guest, const struct machine *machine, int port)
{
    sigset_t handled;
    memset(guest, 0, sizeof *guest);
    guest->machine = machine;
    guest->end_at = NEVER;
    guest->input_at = guest->input_end = guest->input;
    workload_init(&guest->workload);
    hold_init(&guest->hold);
    orders_init(&guest->orders);
    console_init(&guest->console);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&handled);
    sigaddset(&handled, SIGCHLD);
    sigprocmask(SIG_BLOCK, &handled, NULL);
    guest->signals = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
    return guest->signals >= 0 && port_attach(&guest->port, port);
}

static int code_of(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Every orphan of the guest is ours to reap. */
static void reap(struct guest *guest)
{
    struct signalfd_siginfo seen[8];
    int status;
    if (!guest->signals_ready)
        return;
    guest->signals_ready = false;
    while (read(guest->signals, seen, sizeof seen) > 0)
        continue;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        if (!workload_reaped(&guest->workload, pid, code_of(status)) &&
            !hold_reaped(&guest->hold, guest->machine, pid, code_of(status)))
            execs_reaped(&guest->execs, pid, code_of(status));
}

/* The workload is over: so is everything it left behind. */
static void begin_end(struct guest *guest)
{
    execs_kill(&guest->execs);
    guest->machine->end_all();
    guest->machine->finish();
    guest->workload.output.ready = guest->workload.errors.ready = true;
    guest->end_at = now_ms() + (guest->synced && !guest->port.away ? END_ATTACHED_MS : END_AWAY_MS);
}

static bool finished(const struct guest *guest)
{
    if (guest->end_at == NEVER)
        return false;
    return now_ms() >= guest->end_at || (guest->told_end && guest->end_seen);
}

static void wait_for_work(struct guest *guest)
{
    struct watch watch;
    watch_begin(&watch);
    watch_for(&watch, guest->signals, POLLIN, &guest->signals_ready);
    workload_hold_back(&guest->workload, guest->synced && !guest->port.away && guest->end_at == NEVER);
    workload_watch(&guest->workload, &watch);
    console_watch(&guest->console, &watch);
    execs_watch(&guest->execs, &watch, guest->synced && outbuf_takes_data(&guest->out));
    port_watch(&guest->port, &watch, outbuf_pending(&guest->out) > 0);
    hold_watch(&guest->hold, &watch);
    orders_watch(&guest->orders, &watch);
    watch_until(&watch, guest->end_at);
    if (guest->end_at != NEVER && now_ms() < guest->end_at - LAST_WORD_MS)
        watch_until(&watch, guest->end_at - LAST_WORD_MS);
    if (guest_hears_more(guest) || workload_has_more(&guest->workload))
        watch_until(&watch, now_ms());
    watch_wait(&watch);
}

void guest_run(struct guest *guest)
{
    while (!finished(guest)) {
        wait_for_work(guest);
        if (port_refresh(&guest->port))
            guest_lose_host(guest);
        reap(guest);
        workload_turn(&guest->workload);
        guest_hear(guest);
        console_turn(&guest->console);
        execs_turn(&guest->execs);
        hold_turn(&guest->hold, guest->machine, guest->port.away);
        orders_turn(&guest->orders, guest->machine);
        if (workload_over(&guest->workload) && guest->end_at == NEVER)
            begin_end(guest);
        guest_tell(guest);
    }
}
