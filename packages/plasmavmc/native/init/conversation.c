/* What the guest says and hears. Everything it says follows from its state, so a resync only resets what was told. */

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "clock.h"
#include "guest.h"
#include "tlv.h"

enum {
    FRAMES_A_TURN = 64,
    OUTPUT_HEADER = 9,                             /* u64 offset, u8 stream */
    OUTPUT_OVERHEAD = FRAME_HEADER + OUTPUT_HEADER, /* what a frame of output costs beside its data */
};

void guest_lose_host(struct guest *guest)
{
    guest->synced = false;
    outbuf_clear(&guest->out);
    execs_hang_up(&guest->execs);
    console_forget(&guest->console);
}

static void forget_raw(struct guest *guest)
{
    if (guest->raw_config)
        explicit_bzero(guest->raw_config, guest->raw_length);
    free(guest->raw_config);
    guest->raw_config = NULL;
    guest->raw_length = 0;
    guest->raw_refused = false;
}

static void say_hello(struct guest *guest)
{
    uint8_t *payload = outbuf_payload(&guest->out);
    put_u16(payload, PROTOCOL_VERSION);
    payload[2] = guest->configured;
    payload[3] = guest->hold.state == HOLD_HELD;
    put_u64(payload + 4, guest->workload.ring.first_offset);
    outbuf_commit(&guest->out, FRAME_HELLO, 0, 12);
}

/* A host speaks to us for the first time, or again: what an older connection left half said is void. */
static void synchronise(struct guest *guest)
{
    guest_lose_host(guest);
    hold_new_host(&guest->hold, guest->machine);
    guest->orders.tell = false;
    if (!guest->configured)
        forget_raw(guest);
    outbuf_raw(&guest->out, sync_magic, SYNC_MAGIC);
    outbuf_raw(&guest->out, guest->parser.nonce, SYNC_NONCE);
    guest->synced = true;
    guest->told_ready = guest->told_end = false;
    guest->log_credit = LOG_WINDOW;
    ring_rewind(&guest->workload.ring);
    say_hello(guest);
}

static void take_config_part(struct guest *guest, const struct frame *frame)
{
    if (guest->configured || guest->raw_refused)
        return;
    guest->raw_refused = frame->length > CONFIG_MAX_BYTES - guest->raw_length;
    uint8_t *raw = guest->raw_refused ? NULL : realloc(guest->raw_config, guest->raw_length + frame->length + 1);
    if (!raw) {
        guest->raw_refused = true;
        return;
    }
    guest->raw_config = raw;
    memcpy(raw + guest->raw_length, frame->payload, frame->length);
    guest->raw_length += frame->length;
}

static void take_config_end(struct guest *guest)
{
    struct failure failure;
    if (guest->configured || guest->workload.state != WORKLOAD_NONE)
        return;
    bool ready = guest->raw_refused
                     ? fail(&failure, "bad-config", "the configuration exceeds %d bytes", CONFIG_MAX_BYTES)
                     : config_parse(&guest->config, guest->raw_config, guest->raw_length, &failure) &&
                           guest->machine->prepare(&guest->config, &failure);
    guest->configured = true;
    config_forget_raw(&guest->config);
    forget_raw(guest);
    if (ready)
        workload_start(&guest->workload, &guest->config.command);
    else
        workload_refuse(&guest->workload, &failure);
    console_open(&guest->console, &guest->workload);
}

static void take_log_credit(struct guest *guest, uint32_t grant)
{
    guest->log_credit = grant > UINT32_MAX - guest->log_credit ? UINT32_MAX : guest->log_credit + grant;
}

static void take_freeze(struct guest *guest)
{
    bool blank = !guest->configured && !guest->raw_config;
    if (guest->workload.state == WORKLOAD_RUNNING || blank)
        hold_begin(&guest->hold, guest->machine);
    else
        hold_refuse(&guest->hold);
}

static void take_thaw(struct guest *guest, const struct frame *frame)
{
    struct identity_card card = {0};
    struct failure failure;
    if (card_parse(&card, frame->payload, frame->length, &failure))
        hold_end(&guest->hold, guest->machine, &card, &guest->config.command);
    card_free(&card);
}

static void take_frame(struct guest *guest, const struct frame *frame)
{
    if (frame->stream)
        execs_take(&guest->execs, frame, guest->configured ? &guest->config.command : NULL, &guest->out);
    else if (frame->type == FRAME_CONFIG_PART)
        take_config_part(guest, frame);
    else if (frame->type == FRAME_CONFIG_END)
        take_config_end(guest);
    else if (frame->type == FRAME_ACK && frame->length == 8)
        ring_acknowledge(&guest->workload.ring, get_u64(frame->payload));
    else if (frame->type == FRAME_CREDIT && frame->length == 4)
        take_log_credit(guest, get_u32(frame->payload));
    else if (frame->type == FRAME_STOP && frame->length == 8)
        workload_stop(&guest->workload, (int)get_u32(frame->payload), get_u32(frame->payload + 4));
    else if (frame->type == FRAME_SEEN_END)
        guest->end_seen = true;
    else if (frame->type == FRAME_FREEZE)
        take_freeze(guest);
    else if (frame->type == FRAME_THAW)
        take_thaw(guest, frame);
    else if (frame->type == FRAME_ORDER)
        orders_take(&guest->orders, guest->machine, frame->payload, frame->length);
    else
        console_take(&guest->console, &guest->workload, frame);
}

/* An answer may be due for each frame, so none is taken without room for one. */
bool guest_hears_more(struct guest *guest)
{
    bool unparsed = guest->input_at < guest->input_end;
    return (unparsed || guest->port.readable) && outbuf_takes_control(&guest->out);
}

void guest_hear(struct guest *guest)
{
    for (int frames = 0; frames < FRAMES_A_TURN && guest_hears_more(guest);) {
        if (guest->input_at == guest->input_end) {
            guest->input_at = guest->input;
            guest->input_end = guest->input + port_read(&guest->port, guest->input, INPUT_SIZE);
        }
        switch (parser_next(&guest->parser, &guest->input_at, guest->input_end)) {
        case PARSE_MORE:
            break;
        case PARSE_SYNC:
            synchronise(guest);
            frames++;
            break;
        case PARSE_FRAME:
            take_frame(guest, &guest->parser.frame);
            frames++;
            break;
        }
    }
}

static bool tell_log(struct guest *guest)
{
    uint8_t stream;
    uint64_t offset;
    struct ring *ring = &guest->workload.ring;
    if (!ring_has_unsent(ring) || guest->log_credit < FRAME_HEADER + OUT_DATA_MAX || !outbuf_takes_data(&guest->out))
        return false;
    uint8_t *payload = outbuf_payload(&guest->out);
    size_t length = ring_take(ring, payload + OUTPUT_HEADER, OUT_DATA_MAX - OUTPUT_HEADER, &stream, &offset);
    put_u64(payload, offset);
    payload[8] = stream;
    outbuf_commit(&guest->out, FRAME_OUTPUT, 0, OUTPUT_HEADER + length);
    guest->log_credit -= (uint32_t)(length + OUTPUT_OVERHEAD);
    return true;
}

static bool tell_ready(struct guest *guest)
{
    enum workload_state state = guest->workload.state;
    if (guest->told_ready || (state != WORKLOAD_RUNNING && state != WORKLOAD_EXITED) || !guest->workload.pid ||
        !outbuf_takes_control(&guest->out))
        return false;
    put_u32(outbuf_payload(&guest->out), (uint32_t)guest->workload.pid);
    outbuf_commit(&guest->out, FRAME_READY, 0, 4);
    guest->told_ready = true;
    return true;
}

static size_t put_failure(uint8_t *at, const struct failure *failure)
{
    uint8_t *end = tlv_put_text(at, TAG_CODE, failure->code);
    return (size_t)(tlv_put_text(end, TAG_MESSAGE, failure->message) - at);
}

/* Without a payload: as asked. */
static bool tell_hold(struct guest *guest, bool *due, enum frame_type word)
{
    if (!*due || !outbuf_takes_control(&guest->out))
        return false;
    bool failed = guest->hold.failure.code[0];
    outbuf_commit(&guest->out, word, 0, failed ? put_failure(outbuf_payload(&guest->out), &guest->hold.failure) : 0);
    *due = false;
    return true;
}

static bool tell_order(struct guest *guest)
{
    struct orders *orders = &guest->orders;
    if (!orders->tell || !outbuf_takes_control(&guest->out))
        return false;
    uint8_t *payload = outbuf_payload(&guest->out);
    payload[0] = orders->order;
    payload[1] = orders->disk;
    size_t told = orders->failure.code[0] ? put_failure(payload + 2, &orders->failure) : 0;
    outbuf_commit(&guest->out, FRAME_ORDERED, 0, 2 + told);
    orders->tell = false;
    return true;
}

static void put_end(struct guest *guest)
{
    const struct workload *workload = &guest->workload;
    uint8_t *payload = outbuf_payload(&guest->out);
    if (workload->state == WORKLOAD_EXITED) {
        put_u32(payload, (uint32_t)workload->exit_code);
        payload[4] = workload->oom;
        outbuf_commit(&guest->out, FRAME_EXITED, 0, 5);
        return;
    }
    outbuf_commit(&guest->out, FRAME_FAILED, 0, put_failure(payload, &workload->failure));
}

/* The last word comes after all output and all commands' ends; half-way to the deadline it comes anyway. */
static bool tell_end(struct guest *guest)
{
    if (guest->end_at == NEVER || guest->told_end || !outbuf_takes_control(&guest->out))
        return false;
    bool all_told = workload_silent(&guest->workload) && !ring_has_unsent(&guest->workload.ring) &&
                    execs_quiet(&guest->execs);
    if (!all_told && now_ms() < guest->end_at - LAST_WORD_MS)
        return false;
    put_end(guest);
    guest->told_end = true;
    return true;
}

static bool tell_round(struct guest *guest)
{
    bool moved = tell_ready(guest);
    moved = tell_log(guest) || moved;
    moved = execs_send(&guest->execs, &guest->out) || moved;
    moved = tell_hold(guest, &guest->hold.tell_held, FRAME_FROZEN) || moved;
    moved = tell_hold(guest, &guest->hold.tell_free, FRAME_THAWED) || moved;
    moved = tell_order(guest) || moved;
    moved = console_tell(&guest->console, &guest->out) || moved;
    return tell_end(guest) || moved;
}

void guest_tell(struct guest *guest)
{
    bool moved;
    do {
        moved = guest->synced && tell_round(guest);
        if (outbuf_pending(&guest->out) && guest->port.writable)
            guest->port.writable = outbuf_flush(&guest->out, guest->port.fd);
    } while (moved);
}
