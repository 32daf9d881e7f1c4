/* Frames survive any cut of the pipe; noise and half-read frames lead to a hunt, and a sync ends it. */

#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crc32.h"
#include "frame.h"

enum { FLUSH = FRAME_HEADER + FRAME_MAX_PAYLOAD, STREAM_SIZE = 400 * 1024 };

static struct parser parser;
static uint8_t stream[STREAM_SIZE];
static size_t used;
static uint8_t nonce[SYNC_NONCE] = "0123456789abcdef";

static void put(const void *bytes, size_t length)
{
    CHECK(used + length <= sizeof stream);
    memcpy(stream + used, bytes, length);
    used += length;
}

static void put_sync(size_t zeros)
{
    memset(stream + used, 0, zeros);
    used += zeros;
    put(sync_magic, SYNC_MAGIC);
    put(nonce, SYNC_NONCE);
}

static size_t put_frame(enum frame_type type, uint16_t number, const char *text)
{
    memcpy(stream + used + FRAME_HEADER, text, strlen(text));
    frame_seal(stream + used, type, number, (uint32_t)strlen(text));
    used += FRAME_HEADER + strlen(text);
    return FRAME_HEADER + strlen(text);
}

static void restart(void)
{
    memset(&parser, 0, sizeof parser);
    used = 0;
}

/* Feed everything in pieces of `piece` bytes; returns frames + 1000 * syncs. */
static int feed(size_t piece)
{
    int seen = 0;
    for (size_t at = 0; at < used; at += piece) {
        const uint8_t *cursor = stream + at;
        const uint8_t *end = stream + (at + piece < used ? at + piece : used);
        for (;;) {
            enum parse_event event = parser_next(&parser, &cursor, end);
            if (event == PARSE_MORE)
                break;
            if (event == PARSE_SYNC)
                CHECK(!memcmp(parser.nonce, nonce, SYNC_NONCE));
            else
                CHECK(parser.frame.length <= FRAME_MAX_PAYLOAD);
            seen += event == PARSE_SYNC ? 1000 : 1;
        }
        CHECK(cursor == end);
    }
    used = 0;
    return seen;
}

static void test_the_checksum_is_the_usual_one(void)
{
    CHECK(crc32_update(0, (const uint8_t *)"123456789", 9) == 0xCBF43926);
    CHECK(crc32_update(crc32_update(0, (const uint8_t *)"1234", 4), (const uint8_t *)"56789", 5) == 0xCBF43926);
}

static void test_frames_are_found_however_the_pipe_cuts_them(void)
{
    for (size_t piece = 1; piece < 40; piece++) {
        restart();
        put_sync(0);
        put_frame(FRAME_STDIN, 7, "hello");
        put_frame(FRAME_STDIN_EOF, 7, "");
        put_frame(FRAME_STDIN, 8, "a longer payload that spans many pieces");
        CHECK(feed(piece) == 1003);
    }
}

static void test_nothing_is_believed_before_a_sync(void)
{
    restart();
    put_frame(FRAME_STOP, 0, "12345678");
    CHECK(feed(5) == 0);
}

static void test_a_frame_that_was_cut_anywhere_is_finished_by_zeros(void)
{
    for (size_t cut = 0; cut < FRAME_HEADER + 5; cut++) {
        restart();
        put_sync(0);
        size_t length = put_frame(FRAME_STDIN, 7, "hello");
        used -= length - cut;
        put_sync(FLUSH);
        put_frame(FRAME_STOP, 0, "12345678");
        CHECK(feed(4096) == 2001);
    }
}

static void test_a_frame_of_the_largest_size_that_was_cut_is_finished_too(void)
{
    restart();
    put_sync(0);
    uint8_t header[FRAME_HEADER] = {0};
    put_u32(header, FRAME_MAX_PAYLOAD);
    put_u32(header + 8, 12345);
    put(header, sizeof header);
    put_sync(FLUSH);
    put_frame(FRAME_STOP, 0, "12345678");
    CHECK(feed(1000) == 2001);
}

static void test_a_sync_is_found_after_a_broken_start_of_the_magic(void)
{
    restart();
    put(sync_magic, 5);
    put(sync_magic, 1);
    put_sync(0);
    CHECK(feed(1) == 1000);
}

static void test_a_wrong_checksum_and_a_length_beyond_bounds_start_a_hunt(void)
{
    restart();
    put_sync(0);
    put_frame(FRAME_STDIN, 7, "hello");
    stream[used - 1] ^= 1;
    put_frame(FRAME_STDIN, 7, "unheard");
    CHECK(feed(64) == 1000);
    restart();
    put_sync(0);
    uint8_t header[FRAME_HEADER] = {0};
    put_u32(header, FRAME_MAX_PAYLOAD + 1);
    put(header, sizeof header);
    put_frame(FRAME_STDIN, 7, "unheard");
    CHECK(feed(64) == 1000);
}

static void test_random_and_mutated_bytes_do_no_harm_and_a_sync_always_recovers(void)
{
    unsigned random = 20240229;
    for (int round = 0; round < 400; round++) {
        restart();
        put_sync(0);
        for (int i = 0; i < 20; i++)
            put_frame((enum frame_type)(next_random(&random) % 90), (uint16_t)next_random(&random), "some payload");
        for (int i = 0; i < 30 && round % 2; i++)
            stream[next_random(&random) % used] ^= (uint8_t)(1 << next_random(&random) % 8);
        for (size_t i = 0; i < used && !(round % 2); i++)
            stream[i] = (uint8_t)next_random(&random);
        for (int i = 0; i < SYNC_NONCE; i++)
            if (round % 2)
                stream[SYNC_MAGIC + i] = nonce[i];
        feed(1 + next_random(&random) % 100);
        put_sync(FLUSH);
        put_frame(FRAME_STOP, 0, "12345678");
        CHECK(feed(1 + next_random(&random) % 5000) % 1000 >= 1);
    }
}

int main(void)
{
    test_the_checksum_is_the_usual_one();
    test_frames_are_found_however_the_pipe_cuts_them();
    test_nothing_is_believed_before_a_sync();
    test_a_frame_that_was_cut_anywhere_is_finished_by_zeros();
    test_a_frame_of_the_largest_size_that_was_cut_is_finished_too();
    test_a_sync_is_found_after_a_broken_start_of_the_magic();
    test_a_wrong_checksum_and_a_length_beyond_bounds_start_a_hunt();
    test_random_and_mutated_bytes_do_no_harm_and_a_sync_always_recovers();
    return 0;
}
