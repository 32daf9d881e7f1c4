/* The ring keeps the newest, counts what it drops, and numbers every byte once. */

#include <string.h>

#include "check.h"
#include "ring.h"

static struct ring ring;
static uint8_t piece[RING_RECORD_MAX * 4];

static void restart(void)
{
    memset(&ring, 0, sizeof ring);
}

static void test_output_is_taken_in_order_with_its_numbers(void)
{
    uint8_t stream, bytes[RING_RECORD_MAX];
    uint64_t offset;
    restart();
    ring_append(&ring, 1, (const uint8_t *)"one", 3);
    ring_append(&ring, 1, (const uint8_t *)"two", 3);
    ring_append(&ring, 2, (const uint8_t *)"err", 3);
    CHECK(ring_take(&ring, bytes, sizeof bytes, &stream, &offset) == 6);
    CHECK(stream == 1 && offset == 0 && !memcmp(bytes, "onetwo", 6));
    CHECK(ring_take(&ring, bytes, sizeof bytes, &stream, &offset) == 3);
    CHECK(stream == 2 && offset == 6 && !memcmp(bytes, "err", 3));
    CHECK(!ring_has_unsent(&ring));
}

static void test_what_is_not_acknowledged_is_sent_again_after_a_rewind(void)
{
    uint8_t stream, bytes[RING_RECORD_MAX];
    uint64_t offset;
    restart();
    ring_append(&ring, 1, (const uint8_t *)"one", 3);
    ring_append(&ring, 2, (const uint8_t *)"two", 3);
    while (ring_has_unsent(&ring))
        ring_take(&ring, bytes, sizeof bytes, &stream, &offset);
    ring_acknowledge(&ring, 3);
    ring_rewind(&ring);
    CHECK(ring_take(&ring, bytes, sizeof bytes, &stream, &offset) == 3);
    CHECK(offset == 3 && stream == 2);
    ring_acknowledge(&ring, 5); /* in part: the record stays */
    ring_rewind(&ring);
    CHECK(ring_has_unsent(&ring) && ring.first_offset == 3);
    ring_acknowledge(&ring, 1000); /* beyond what there is */
    CHECK(ring.first == ring.last && ring.dropped == 0);
}

static void test_the_oldest_goes_first_and_is_counted(void)
{
    uint8_t stream, bytes[RING_RECORD_MAX];
    uint64_t offset, total = 0;
    restart();
    for (int i = 0; i < 400; i++, total += sizeof piece)
        ring_append(&ring, 1, piece, sizeof piece);
    CHECK(ring.last_offset == total);
    CHECK(ring.dropped == ring.first_offset && ring.dropped > 0);
    CHECK(ring.last - ring.first <= RING_CAPACITY);
    CHECK(total - ring.dropped > RING_CAPACITY - 2 * RING_RECORD_MAX);
    ring_take(&ring, bytes, sizeof bytes, &stream, &offset);
    CHECK(offset == ring.first_offset); /* what was dropped unsent shows as a gap */
}

static void test_random_use_never_loses_count(void)
{
    static uint8_t bytes[2 * RING_RECORD_MAX];
    unsigned random = 77;
    uint64_t expected = 0, offset;
    uint8_t stream;
    restart();
    for (int i = 0; i < 30000; i++) {
        unsigned choice = next_random(&random) % 10;
        if (choice < 6) {
            size_t length = 1 + next_random(&random) % sizeof piece;
            for (size_t j = 0; j < length; j++)
                piece[j] = (uint8_t)((ring.last_offset + j) * 31 >> 3);
            ring_append(&ring, 1 + choice % 2, piece, length);
        } else if (choice < 9) {
            size_t length = ring_take(&ring, bytes, sizeof bytes, &stream, &offset);
            CHECK(length == 0 || offset >= expected);
            for (size_t j = 0; j < length; j++)
                CHECK(bytes[j] == (uint8_t)((offset + j) * 31 >> 3));
            expected = offset + length;
        } else {
            ring_acknowledge(&ring, expected - next_random(&random) % 5 % (expected + 1));
        }
        CHECK(ring.first <= ring.next_to_send && ring.next_to_send <= ring.last);
        CHECK(ring.last - ring.first <= RING_CAPACITY);
        CHECK(ring.first_offset <= ring.send_offset && ring.send_offset <= ring.last_offset);
    }
}

int main(void)
{
    test_output_is_taken_in_order_with_its_numbers();
    test_what_is_not_acknowledged_is_sent_again_after_a_rewind();
    test_the_oldest_goes_first_and_is_counted();
    test_random_use_never_loses_count();
    return 0;
}
