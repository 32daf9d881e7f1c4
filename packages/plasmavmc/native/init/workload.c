#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "oom.h"
#include "pty.h"
#include "spawn.h"

enum { READ_SIZE = 16 * 1024, READS_A_TURN = 16 };

void workload_init(struct workload *workload)
{
    memset(workload, 0, sizeof *workload);
    workload->status.fd = workload->output.fd = workload->errors.fd = workload->input = workload->kmsg = -1;
    workload->kill_at = NEVER;
}

void workload_refuse(struct workload *workload, const struct failure *failure)
{
    workload->failure = *failure;
    workload->state = WORKLOAD_FAILED;
}

static bool open_pipes(struct workload *workload, const struct command *command, struct spawn_io *io)
{
    if (command->open_stdin && !pipe_for_writing(&workload->input, &io->in))
        return false;
    if (!command->open_stdin)
        io->in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return io->in >= 0 && pipe_for_reading(&workload->output.fd, &io->out) &&
           pipe_for_reading(&workload->errors.fd, &io->error);
}

static bool open_terminal(struct workload *workload, const struct command *command, struct spawn_io *io)
{
    if (!pty_open(&workload->output.fd, &io->in, command->rows, command->columns))
        return false;
    workload->terminal = io->terminal = true;
    workload->input = fcntl(workload->output.fd, F_DUPFD_CLOEXEC, 3);
    io->out = fcntl(io->in, F_DUPFD_CLOEXEC, 3);
    io->error = fcntl(io->in, F_DUPFD_CLOEXEC, 3);
    return workload->input >= 0 && io->out >= 0 && io->error >= 0;
}

static bool start(struct workload *workload, const struct command *command, struct failure *failure)
{
    struct spawned spawned;
    struct spawn_io io = {.in = -1, .out = -1, .error = -1};
    bool started = false;
    workload->attached = command->attached;
    if (!(command->terminal ? open_terminal(workload, command, &io) : open_pipes(workload, command, &io)))
        fail(failure, "no-stdio", "cannot open its %s: %s", command->terminal ? "terminal" : "pipes", strerror(errno));
    else if (spawn(command, &io, &spawned, failure)) {
        workload->pid = spawned.pid;
        workload->status.fd = spawned.status;
        started = true;
    }
    if (io.in >= 0)
        close(io.in);
    if (io.out >= 0)
        close(io.out);
    if (io.error >= 0)
        close(io.error);
    return started;
}

void workload_start(struct workload *workload, const struct command *command)
{
    struct failure failure;
    workload->kmsg = oom_open();
    if (start(workload, command, &failure))
        workload->state = WORKLOAD_STARTING;
    else
        workload_refuse(workload, &failure);
}

void workload_watch(struct workload *workload, struct watch *watch)
{
    watch_for(watch, workload->status.fd, POLLIN, &workload->status.ready);
    if (!workload->holds_back) {
        watch_for(watch, workload->output.fd, POLLIN, &workload->output.ready);
        watch_for(watch, workload->errors.fd, POLLIN, &workload->errors.ready);
    }
    watch_until(watch, workload->kill_at);
}

static void hear_start(struct workload *workload)
{
    struct failure failure;
    workload->status.ready = false;
    if (!spawn_started(&workload->status.fd, &failure))
        workload_refuse(workload, &failure);
    else
        workload->state = workload->reaped ? WORKLOAD_EXITED : WORKLOAD_RUNNING;
}

/* Before a read that would push out what the host has not acknowledged. */
static bool ring_is_full(const struct ring *ring)
{
    size_t headers = RING_RECORD_HEADER * (READ_SIZE / RING_RECORD_MAX + 1);
    return RING_CAPACITY - (ring->last - ring->first) < READ_SIZE + headers;
}

void workload_hold_back(struct workload *workload, bool possible)
{
    workload->may_hold_back = possible && workload->attached;
    workload->holds_back = workload->may_hold_back && ring_is_full(&workload->ring);
}

/*
 * A bounded number of reads, so that a flood on one stream does not hold up the rest of the loop. EIO is how a
 * terminal says that its last user left.
 */
static void drain(struct workload *workload, struct pipe_source *source, uint8_t stream)
{
    uint8_t bytes[READ_SIZE];
    for (int reads = 0; source->ready && reads < READS_A_TURN; reads++) {
        if (workload->may_hold_back && ring_is_full(&workload->ring))
            return;
        ssize_t length = read(source->fd, bytes, sizeof bytes);
        if (length > 0) {
            ring_append(&workload->ring, stream, bytes, (size_t)length);
        } else if (length == 0 || errno == EIO) {
            close(source->fd);
            source->fd = -1;
            source->ready = false;
        } else if (errno != EINTR) {
            source->ready = false;
        }
    }
}

void workload_turn(struct workload *workload)
{
    if (workload->status.ready)
        hear_start(workload);
    drain(workload, &workload->output, STREAM_STDOUT);
    drain(workload, &workload->errors, STREAM_STDERR);
    if (workload->kill_at != NEVER && now_ms() >= workload->kill_at) {
        workload->kill_at = NEVER;
        if (workload->pid > 0 && !workload->reaped)
            kill(workload->pid, SIGKILL);
    }
}

bool workload_has_more(const struct workload *workload)
{
    return !workload->holds_back && (workload->output.ready || workload->errors.ready);
}

bool workload_silent(const struct workload *workload)
{
    return workload->output.fd < 0 && workload->errors.fd < 0;
}

bool workload_reaped(struct workload *workload, pid_t pid, int code)
{
    if (workload->reaped || workload->pid <= 0 || pid != workload->pid)
        return false;
    workload->reaped = true;
    workload->exit_code = code;
    workload->kill_at = NEVER;
    workload->oom = oom_killed(workload->kmsg, pid, code);
    if (workload->state == WORKLOAD_RUNNING)
        workload->state = WORKLOAD_EXITED;
    return true;
}

void workload_stop(struct workload *workload, int signal_number, uint32_t grace_ms)
{
    if (workload->state == WORKLOAD_NONE) {
        workload->exit_code = 128 + signal_number;
        workload->state = WORKLOAD_EXITED;
        return;
    }
    if (workload->reaped || workload->pid <= 0)
        return;
    kill(workload->pid, signal_number);
    workload->kill_at = now_ms() + grace_ms;
}

bool workload_over(const struct workload *workload)
{
    return workload->state == WORKLOAD_FAILED || workload->state == WORKLOAD_EXITED;
}
