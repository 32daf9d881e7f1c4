#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "oom.h"
#include "spawn.h"

enum { READ_SIZE = 16 * 1024, READS_A_TURN = 16 };

void workload_init(struct workload *workload)
{
    memset(workload, 0, sizeof *workload);
    workload->status.fd = workload->output.fd = workload->errors.fd = workload->kmsg = -1;
    workload->kill_at = NEVER;
}

void workload_refuse(struct workload *workload, const struct failure *failure)
{
    workload->failure = *failure;
    workload->state = WORKLOAD_FAILED;
}

static bool start(struct workload *workload, const struct command *command, struct failure *failure)
{
    struct spawned spawned;
    struct spawn_io io = {.in = open("/dev/null", O_RDONLY | O_CLOEXEC), .out = -1, .error = -1};
    bool started = false;
    if (io.in < 0 || !pipe_for_reading(&workload->output.fd, &io.out) ||
        !pipe_for_reading(&workload->errors.fd, &io.error))
        fail(failure, "no-process", "cannot make a pipe: %s", strerror(errno));
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
    watch_for(watch, workload->output.fd, POLLIN, &workload->output.ready);
    watch_for(watch, workload->errors.fd, POLLIN, &workload->errors.ready);
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

/* A bounded number of reads, so that a flood on one stream does not hold up the rest of the loop. */
static void drain(struct ring *ring, struct pipe_source *source, uint8_t stream)
{
    uint8_t bytes[READ_SIZE];
    for (int reads = 0; source->ready && reads < READS_A_TURN; reads++) {
        ssize_t length = read(source->fd, bytes, sizeof bytes);
        if (length > 0) {
            ring_append(ring, stream, bytes, (size_t)length);
        } else if (length == 0) {
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
    drain(&workload->ring, &workload->output, STREAM_STDOUT);
    drain(&workload->ring, &workload->errors, STREAM_STDERR);
    if (workload->kill_at != NEVER && now_ms() >= workload->kill_at) {
        workload->kill_at = NEVER;
        if (workload->pid > 0 && !workload->reaped)
            kill(workload->pid, SIGKILL);
    }
}

bool workload_has_more(const struct workload *workload)
{
    return workload->output.ready || workload->errors.ready;
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
