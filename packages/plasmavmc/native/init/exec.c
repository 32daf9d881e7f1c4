#include "exec.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "copy.h"
#include "exec_io.h"
#include "pty.h"
#include "spawn.h"
#include "tlv.h"

static struct exec *find(struct execs *execs, uint16_t stream)
{
    for (int i = 0; i < EXECS_MAX; i++)
        if (execs->slots[i] && execs->slots[i]->stream == stream)
            return execs->slots[i];
    return NULL;
}

static struct exec **free_slot(struct execs *execs)
{
    for (int i = 0; i < EXECS_MAX; i++)
        if (!execs->slots[i])
            return &execs->slots[i];
    return NULL;
}

static void refuse(struct outbuf *out, uint16_t stream, const struct failure *failure)
{
    uint8_t *start = outbuf_payload(out);
    uint8_t *end = tlv_put_text(start, TAG_CODE, failure->code);
    end = tlv_put_text(end, TAG_MESSAGE, failure->message);
    outbuf_commit(out, FRAME_EXEC_REFUSED, stream, (size_t)(end - start));
}

static void signal_group(const struct exec *exec, int number)
{
    if (exec->reaped || exec->pid <= 0)
        return;
    if (kill(-exec->pid, number) < 0 && errno == ESRCH)
        kill(exec->pid, number); /* it has not made its session yet */
}

static bool open_pipes(struct exec *exec, struct spawn_io *io)
{
    return pipe_for_writing(&exec->input, &io->in) && pipe_for_reading(&exec->output.fd, &io->out) &&
           pipe_for_reading(&exec->errors.fd, &io->error);
}

static bool open_terminal(struct exec *exec, const struct command *command, struct spawn_io *io)
{
    if (!pty_open(&exec->output.fd, &io->in, command->rows, command->columns))
        return false;
    exec->terminal = io->terminal = true;
    exec->input = fcntl(exec->output.fd, F_DUPFD_CLOEXEC, 3);
    io->out = fcntl(io->in, F_DUPFD_CLOEXEC, 3);
    io->error = fcntl(io->in, F_DUPFD_CLOEXEC, 3);
    return exec->input >= 0 && io->out >= 0 && io->error >= 0;
}

static void close_theirs(const struct spawn_io *io)
{
    const int ends[] = {io->in, io->out, io->error};
    for (int i = 0; i < 3; i++)
        if (ends[i] >= 0)
            close(ends[i]);
}

static bool started(struct exec *exec, const struct spawned *spawned)
{
    exec->pid = spawned->pid;
    exec->status.fd = spawned->status;
    return true;
}

static bool start(struct exec *exec, const struct command *command, struct failure *failure)
{
    struct spawned spawned = {0};
    struct spawn_io io = {.in = -1, .out = -1, .error = -1};
    bool open = command->terminal ? open_terminal(exec, command, &io) : open_pipes(exec, &io);
    if (!open)
        fail(failure, "no-stdio", "cannot open its %s: %s", command->terminal ? "terminal" : "pipes", strerror(errno));
    else
        open = spawn(command, &io, &spawned, failure);
    close_theirs(&io);
    return open && started(exec, &spawned);
}

static bool start_copy(struct exec *exec, const struct copy *copy, struct failure *failure)
{
    struct spawned spawned = {0};
    struct spawn_io io = {.in = -1, .out = -1, .error = -1};
    bool open = open_pipes(exec, &io) ? copy_spawn(copy, &io, &spawned, failure)
                                      : fail(failure, "no-stdio", "cannot open its pipes: %s", strerror(errno));
    close_theirs(&io);
    return open && started(exec, &spawned);
}

static char *copy_or_null(const char *text)
{
    return text ? strdup(text) : NULL;
}

/* What the request leaves open is as the workload has it. */
static bool inherit(struct command *command, const struct command *defaults)
{
    struct texts environment = {0};
    bool whole = true;
    for (size_t i = 0; whole && i < defaults->environment.count; i++)
        whole = texts_assign(&environment, defaults->environment.items[i]);
    for (size_t i = 0; whole && i < command->environment.count; i++)
        whole = texts_assign(&environment, command->environment.items[i]);
    texts_free(&command->environment);
    command->environment = environment;
    if (!command->user)
        command->user = copy_or_null(defaults->user);
    if (!command->workdir)
        command->workdir = copy_or_null(defaults->workdir);
    return whole;
}

static struct exec *new_exec(uint16_t stream)
{
    struct exec *exec = calloc(1, sizeof *exec);
    if (!exec)
        return NULL;
    exec->stream = stream;
    exec->output_credit = EXEC_OUTPUT_WINDOW;
    exec->status.fd = exec->output.fd = exec->errors.fd = exec->input = -1;
    exec->kill_at = NEVER;
    return exec;
}

static bool begin(struct execs *execs, const struct frame *frame, const struct command *defaults,
                  struct failure *failure)
{
    struct command command = {0};
    struct exec **slot = free_slot(execs);
    struct exec *exec = slot ? new_exec(frame->stream) : NULL;
    if (!exec)
        return fail(failure, "too-many", "%d commands run in this VM already", EXECS_MAX);
    bool begun = command_parse(&command, frame->payload, frame->length, failure) &&
                 (inherit(&command, defaults) || fail(failure, "no-process", "out of memory")) &&
                 start(exec, &command, failure);
    command_free(&command);
    if (begun)
        *slot = exec;
    else
        exec_free(exec);
    return begun;
}

static bool begin_copy(struct execs *execs, const struct frame *frame, struct failure *failure)
{
    static struct copy copy;
    struct exec **slot = free_slot(execs);
    struct exec *exec = slot ? new_exec(frame->stream) : NULL;
    if (!exec)
        return fail(failure, "too-many", "%d commands run in this VM already", EXECS_MAX);
    bool begun = copy_parse(&copy, frame->type == FRAME_COPY_IN, frame->payload, frame->length, failure) &&
                 start_copy(exec, &copy, failure);
    if (begun)
        *slot = exec;
    else
        exec_free(exec);
    return begun;
}

static void take_start(struct execs *execs, const struct frame *frame, const struct command *defaults,
                       struct outbuf *out)
{
    struct failure failure;
    if (!defaults)
        fail(&failure, "not-ready", "the VM has no configuration yet");
    else if (frame->type == FRAME_EXEC_START ? begin(execs, frame, defaults, &failure)
                                             : begin_copy(execs, frame, &failure))
        return;
    refuse(out, frame->stream, &failure);
}

static void hang_up(struct exec *exec)
{
    if (exec->hung_up)
        return;
    exec->hung_up = true;
    signal_group(exec, SIGHUP);
    signal_group(exec, SIGCONT);
    exec_close_io(exec);
    exec->kill_at = now_ms() + HANG_UP_GRACE_MS;
}

static void take_credit(struct exec *exec, uint32_t grant)
{
    exec->output_credit = grant > UINT32_MAX - exec->output_credit ? UINT32_MAX : exec->output_credit + grant;
}

void execs_take(struct execs *execs, const struct frame *frame, const struct command *defaults, struct outbuf *out)
{
    struct exec *exec = frame->stream ? find(execs, frame->stream) : NULL;
    bool starts = frame->type == FRAME_EXEC_START || frame->type == FRAME_COPY_IN || frame->type == FRAME_COPY_OUT;
    if (starts && !exec && frame->stream) {
        take_start(execs, frame, defaults, out);
        return;
    }
    if (!exec)
        return; /* it ended while this was under way */
    if (frame->type == FRAME_STDIN && !exec_take_input(exec, frame->payload, frame->length))
        hang_up(exec);
    else if (frame->type == FRAME_STDIN_EOF)
        exec_end_input(exec);
    else if (frame->type == FRAME_RESIZE && frame->length == 4 && exec->terminal && exec->input >= 0)
        pty_resize(exec->input, get_u16(frame->payload), get_u16(frame->payload + 2));
    else if (frame->type == FRAME_SIGNAL && frame->length == 4)
        signal_group(exec, (int)get_u32(frame->payload));
    else if (frame->type == FRAME_CREDIT && frame->length == 4)
        take_credit(exec, get_u32(frame->payload));
    else if (frame->type == FRAME_HANG_UP)
        hang_up(exec);
}

void execs_watch(struct execs *execs, struct watch *watch, bool may_send)
{
    for (int i = 0; i < EXECS_MAX; i++)
        if (execs->slots[i])
            exec_watch(execs->slots[i], watch, may_send);
}

void execs_turn(struct execs *execs)
{
    for (int i = 0; i < EXECS_MAX; i++) {
        struct exec *exec = execs->slots[i];
        if (!exec)
            continue;
        exec_turn(exec);
        if (exec->kill_at != NEVER && now_ms() >= exec->kill_at) {
            exec->kill_at = NEVER;
            signal_group(exec, SIGKILL);
        }
        if (exec->stream == 0 && exec->reaped) {
            exec_free(exec);
            execs->slots[i] = NULL;
        }
    }
}

static bool send_end(struct exec **slot, struct outbuf *out)
{
    struct exec *exec = *slot;
    if (exec->failure.code[0]) {
        refuse(out, exec->stream, &exec->failure);
    } else {
        put_u32(outbuf_payload(out), (uint32_t)exec->exit_code);
        outbuf_commit(out, FRAME_EXEC_EXIT, exec->stream, 4);
    }
    exec_free(exec);
    *slot = NULL;
    return true;
}

static bool send_one(struct exec **slot, struct outbuf *out)
{
    struct exec *exec = *slot;
    if (!exec || exec->stream == 0 || exec->status.fd >= 0)
        return false;
    if (!outbuf_takes_control(out))
        return false;
    if (exec->failure.code[0])
        return exec->reaped && send_end(slot, out);
    bool moved = exec_send(exec, out);
    if (exec->reaped && exec->output.fd < 0 && exec->errors.fd < 0 && outbuf_takes_control(out))
        return send_end(slot, out);
    return moved;
}

bool execs_send(struct execs *execs, struct outbuf *out)
{
    bool moved = false;
    execs->turn++;
    for (unsigned i = 0; i < EXECS_MAX; i++)
        moved = send_one(&execs->slots[(execs->turn + i) % EXECS_MAX], out) || moved;
    return moved;
}

bool execs_reaped(struct execs *execs, pid_t pid, int code)
{
    for (int i = 0; i < EXECS_MAX; i++) {
        struct exec *exec = execs->slots[i];
        if (!exec || exec->pid != pid || exec->reaped)
            continue;
        exec->reaped = true;
        exec->exit_code = code;
        exec->kill_at = NEVER;
        exec->output.ready = exec->errors.ready = true; /* so that what is left is read, and its end seen */
        return true;
    }
    return false;
}

void execs_hang_up(struct execs *execs)
{
    for (int i = 0; i < EXECS_MAX; i++) {
        if (!execs->slots[i])
            continue;
        hang_up(execs->slots[i]);
        execs->slots[i]->stream = 0; /* its number is the new connection's to give */
    }
}

bool execs_quiet(const struct execs *execs)
{
    for (int i = 0; i < EXECS_MAX; i++)
        if (execs->slots[i] && execs->slots[i]->stream)
            return false;
    return true;
}

void execs_kill(struct execs *execs)
{
    for (int i = 0; i < EXECS_MAX; i++)
        if (execs->slots[i])
            signal_group(execs->slots[i], SIGKILL);
}
