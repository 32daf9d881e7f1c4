#include "exec_io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "spawn.h"

enum {
    CREDIT_STEP = EXEC_STDIN_WINDOW / 4,
    OUTPUT_OVERHEAD = FRAME_HEADER + 1, /* what a data frame costs beside its data */
    LEAST_CREDIT = 512,                 /* with less, wait for more rather than send crumbs */
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static bool may_read(const struct exec *exec)
{
    return !exec->hung_up && exec->output_credit >= LEAST_CREDIT;
}

void exec_watch(struct exec *exec, struct watch *watch, bool may_send)
{
    watch_for(watch, exec->status.fd, POLLIN, &exec->status.ready);
    watch_until(watch, exec->kill_at);
    if (exec->input_length)
        watch_for(watch, exec->input, POLLOUT, &exec->input_ready);
    if (!may_send || !may_read(exec))
        return;
    watch_for(watch, exec->output.fd, POLLIN, &exec->output.ready);
    watch_for(watch, exec->errors.fd, POLLIN, &exec->errors.ready);
}

/* The end of input: a pipe is closed; a terminal is told by its end-of-file character. */
static void finish_input(struct exec *exec)
{
    if (!exec->input_eof || exec->input_length || exec->input < 0)
        return;
    if (exec->terminal) {
        exec->input_eof = false;
        if (write(exec->input, "\004", 1) == 1)
            return;
    }
    close_fd(&exec->input);
}

static void discard_input(struct exec *exec)
{
    exec->input_taken += (uint32_t)exec->input_length;
    exec->input_length = 0;
    close_fd(&exec->input);
}

static void write_input(struct exec *exec)
{
    while (exec->input_length && exec->input_ready) {
        ssize_t written = write(exec->input, exec->input_bytes + exec->input_start, exec->input_length);
        if (written > 0) {
            exec->input_start += (size_t)written;
            exec->input_length -= (size_t)written;
            exec->input_taken += (uint32_t)written;
        } else if (errno == EAGAIN) {
            exec->input_ready = false;
        } else if (errno != EINTR) {
            discard_input(exec); /* nobody reads it any more */
        }
    }
    finish_input(exec);
}

void exec_turn(struct exec *exec)
{
    if (exec->status.fd >= 0 && exec->status.ready) {
        exec->status.ready = false;
        if (!spawn_started(&exec->status.fd, &exec->failure))
            exec_close_io(exec);
    }
    write_input(exec);
}

bool exec_take_input(struct exec *exec, const uint8_t *bytes, size_t length)
{
    if (exec->input < 0 || exec->input_eof) {
        exec->input_taken += (uint32_t)length;
        return true;
    }
    if (length > sizeof exec->input_bytes - exec->input_length)
        return false;
    memmove(exec->input_bytes, exec->input_bytes + exec->input_start, exec->input_length);
    memcpy(exec->input_bytes + exec->input_length, bytes, length);
    exec->input_start = 0;
    exec->input_length += length;
    exec->input_ready = true; /* try at once */
    return true;
}

void exec_end_input(struct exec *exec)
{
    exec->input_eof = true;
    finish_input(exec);
}

static void end_source(struct pipe_source *source)
{
    close_fd(&source->fd);
    source->ready = false;
}

/* Read once, straight into a frame. EIO is how a terminal says that its last user left. */
static bool send_output(struct exec *exec, struct pipe_source *source, uint8_t stream, struct outbuf *out)
{
    if (source->fd < 0 || !source->ready || !may_read(exec) || !outbuf_takes_data(out))
        return false;
    size_t room = exec->output_credit - OUTPUT_OVERHEAD;
    if (room > OUT_DATA_MAX - 1)
        room = OUT_DATA_MAX - 1;
    uint8_t *payload = outbuf_payload(out);
    ssize_t length = read(source->fd, payload + 1, room);
    if (length < 0 && errno == EINTR)
        return true;
    if (length > 0) {
        payload[0] = stream;
        outbuf_commit(out, FRAME_EXEC_OUTPUT, exec->stream, (size_t)length + 1);
        exec->output_credit -= (uint32_t)length + OUTPUT_OVERHEAD;
        return true;
    }
    if (length < 0 && errno == EAGAIN && !exec->reaped)
        source->ready = false;
    else
        end_source(source); /* its end; or the command ended and what it left behind is read */
    return false;
}

static bool send_credit(struct exec *exec, struct outbuf *out)
{
    if (!exec->input_taken || (exec->input_taken < CREDIT_STEP && exec->input_length))
        return false;
    put_u32(outbuf_payload(out), exec->input_taken);
    outbuf_commit(out, FRAME_CREDIT, exec->stream, 4);
    exec->input_taken = 0;
    return true;
}

static bool send_started(struct exec *exec, struct outbuf *out)
{
    put_u32(outbuf_payload(out), (uint32_t)exec->pid);
    outbuf_commit(out, FRAME_EXEC_STARTED, exec->stream, 4);
    exec->told_started = true;
    return true;
}

bool exec_send(struct exec *exec, struct outbuf *out)
{
    if (!exec->told_started)
        return send_started(exec, out);
    if (send_credit(exec, out))
        return true;
    bool moved = send_output(exec, &exec->output, STREAM_STDOUT, out);
    return send_output(exec, &exec->errors, STREAM_STDERR, out) || moved;
}

void exec_close_io(struct exec *exec)
{
    end_source(&exec->output);
    end_source(&exec->errors);
    discard_input(exec);
}

void exec_free(struct exec *exec)
{
    exec_close_io(exec);
    close_fd(&exec->status.fd);
    free(exec);
}
