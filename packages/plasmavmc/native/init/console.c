#include "console.h"

#include <signal.h>
#include <string.h>

#include "bytes.h"
#include "clock.h"
#include "exec_io.h"
#include "pty.h"

void console_init(struct console *console)
{
    struct exec *input = &console->input;
    memset(console, 0, sizeof *console);
    input->status.fd = input->output.fd = input->errors.fd = input->input = -1;
    input->kill_at = NEVER;
    input->told_started = true;
}

void console_open(struct console *console, struct workload *workload)
{
    console->input.input = workload->input;
    console->input.terminal = workload->terminal;
    workload->input = -1;
}

static void signal_workload(const struct workload *workload, int number)
{
    if (workload->pid > 0 && !workload->reaped && number > 0 && number < NSIG)
        kill(workload->pid, number);
}

void console_take(struct console *console, struct workload *workload, const struct frame *frame)
{
    struct exec *input = &console->input;
    if (frame->type == FRAME_STDIN)
        exec_take_input(input, frame->payload, frame->length); /* what exceeds the window is dropped */
    else if (frame->type == FRAME_STDIN_EOF)
        exec_end_input(input);
    else if (frame->type == FRAME_RESIZE && frame->length == 4 && input->terminal && input->input >= 0)
        pty_resize(input->input, get_u16(frame->payload), get_u16(frame->payload + 2));
    else if (frame->type == FRAME_SIGNAL && frame->length == 4)
        signal_workload(workload, (int)get_u32(frame->payload));
}

void console_watch(struct console *console, struct watch *watch)
{
    exec_watch(&console->input, watch, false);
}

void console_turn(struct console *console)
{
    exec_turn(&console->input);
}

bool console_tell(struct console *console, struct outbuf *out)
{
    return outbuf_takes_control(out) && exec_send(&console->input, out);
}

void console_forget(struct console *console)
{
    console->input.input_length = 0;
    console->input.input_taken = 0;
}
