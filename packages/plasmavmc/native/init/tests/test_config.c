/* A configuration is taken whole or refused; nothing malformed gets in, and nothing leaks. */

#include <string.h>

#include "bytes.h"
#include "check.h"
#include "config.h"
#include "oom.h"
#include "tlv.h"

static uint8_t raw[4096];
static size_t used;

static void put_bytes(enum tlv_tag tag, const void *value, size_t length)
{
    put_u16(raw + used, (uint16_t)tag);
    put_u32(raw + used + 2, (uint32_t)length);
    memcpy(raw + used + TLV_HEADER, value, length);
    used += TLV_HEADER + length;
}

static void put_text(enum tlv_tag tag, const char *text)
{
    used = (size_t)(tlv_put_text(raw + used, tag, text) - raw);
}

/* Parse what was put, from a copy of exactly its size, so that a read beyond it is seen. */
static bool parse(struct config *config)
{
    struct failure failure;
    uint8_t *copy = malloc(used ? used : 1);
    CHECK(copy);
    memcpy(copy, raw, used);
    memset(config, 0, sizeof *config);
    bool sound = config_parse(config, copy, used, &failure);
    CHECK(sound || !strcmp(failure.code, "bad-config"));
    if (sound && config->file_count)
        CHECK(config->files[0].content + config->files[0].length <= copy + used);
    config_forget_raw(config);
    free(copy);
    used = 0;
    return sound;
}

static void put_file(const char *path, const char *content)
{
    uint8_t value[512];
    put_u32(value, 0600);
    put_u16(value + 4, (uint16_t)strlen(path));
    memcpy(value + 6, path, strlen(path));
    memcpy(value + 6 + strlen(path), content, strlen(content));
    put_bytes(TAG_FILE, value, 6 + strlen(path) + strlen(content));
}

static void test_a_whole_configuration(void)
{
    struct config config;
    put_text(TAG_ARG, "/app");
    put_text(TAG_ARG, "");
    put_text(TAG_ENV, "A=1=2");
    put_text(TAG_USER, "web");
    put_text(TAG_WORKDIR, "/srv");
    put_text(TAG_HOSTNAME, "hello");
    put_text(TAG_NAMESERVER, "10.0.0.1");
    put_bytes(TAG_IPV4, "\x0a\x00\x00\x02", 4);
    put_bytes(TAG_GATEWAY, "\x0a\x00\x00\x01", 4);
    put_bytes(TAG_ENTROPY, "0123456789", 10);
    put_bytes(TAG_TIME, "\x01\x00\x00\x00\x00\x00\x00\x00", 8);
    put_file("/run/secret", "hidden");
    put_bytes((enum tlv_tag)999, "from a newer host", 17);
    CHECK(parse(&config));
    CHECK(config.command.arguments.count == 2 && !strcmp(config.command.arguments.items[0], "/app"));
    CHECK(!config.command.arguments.items[2]);
    CHECK(!strcmp(texts_value(&config.command.environment, "A"), "1=2"));
    CHECK(config.card.has_network && config.card.unix_time_ns == 1 && !strcmp(config.command.user, "web"));
    config_free(&config);
}

static void test_volumes_say_their_disk_and_place(void)
{
    struct config config;
    put_text(TAG_ARG, "/app");
    put_bytes(TAG_VOLUME, "\2\0/data", 7);
    put_bytes(TAG_VOLUME, "\3\1/data/more", 12);
    CHECK(parse(&config));
    CHECK(config.volume_count == 2 && config.volumes[0].disk == 2 && !config.volumes[0].read_only);
    CHECK(config.volumes[1].disk == 3 && config.volumes[1].read_only);
    CHECK(!strcmp(config.volumes[0].place, "/data") && !strcmp(config.volumes[1].place, "/data/more"));
    config_free(&config);
    put_text(TAG_ARG, "/app");
    for (int i = 0; i <= VOLUMES_MAX; i++)
        put_bytes(TAG_VOLUME, "\2\0/data", 7);
    CHECK(!parse(&config));
    config_free(&config);
}

static void test_malformed_fields_are_refused(void)
{
    struct config config;
    CHECK(!parse(&config)); /* no command */
    config_free(&config);
    const struct {
        enum tlv_tag tag;
        const char *value;
        size_t length;
    } wrong[] = {
        {TAG_ARG, "nul\0inside", 10}, {TAG_ENV, "NOEQUALS", 8},       {TAG_IPV4, "123", 3},
        {TAG_TIME, "1234567", 7},     {TAG_FILE, "\0\0\0\0\xff\xff/x", 8}, {TAG_FILE, "\0\0\0\0\x02\0xx", 8},
        {TAG_FILE, "123", 3},         {TAG_TERMINAL, "12345", 5},
        {TAG_VOLUME, "\2\0/", 3},      {TAG_VOLUME, "\2\0data", 6}, {TAG_VOLUME, "\1\0/data", 7},
        {TAG_VOLUME, "\32\0/data", 7}, {TAG_VOLUME, "\2\0/a\0b", 6},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        put_text(TAG_ARG, "/app");
        put_bytes(wrong[i].tag, wrong[i].value, wrong[i].length);
        CHECK(!parse(&config));
        config_free(&config);
    }
}

static void test_a_field_that_is_cut_anywhere_is_refused(void)
{
    struct config config;
    put_text(TAG_ARG, "/app");
    size_t first = used;
    put_file("/run/secret", "hidden");
    size_t whole = used;
    for (size_t cut = first + 1; cut < whole; cut++) {
        used = cut;
        CHECK(!parse(&config));
        config_free(&config);
    }
}

static void test_random_fields_do_no_harm(void)
{
    struct config config;
    unsigned random = 99;
    for (int round = 0; round < 5000; round++) {
        put_text(TAG_ARG, "/app");
        while (used < 300 && next_random(&random) % 8) {
            uint8_t value[40];
            for (size_t i = 0; i < sizeof value; i++)
                value[i] = (uint8_t)(next_random(&random) % 3 ? '/' + next_random(&random) % 20 : 0);
            put_bytes((enum tlv_tag)(next_random(&random) % 28), value, next_random(&random) % sizeof value);
        }
        if (next_random(&random) % 2)
            raw[next_random(&random) % used] ^= (uint8_t)(1 << next_random(&random) % 8);
        parse(&config);
        config_free(&config);
    }
}

static void test_an_assignment_replaces_an_older_one(void)
{
    struct texts texts = {0};
    CHECK(texts_assign(&texts, "PATH=/bin") && texts_assign(&texts, "PATHS=no") && texts_assign(&texts, "PATH=/sbin"));
    CHECK(texts.count == 2 && !strcmp(texts_value(&texts, "PATH"), "/sbin") && !texts_value(&texts, "PAT"));
    texts_free(&texts);
}

static void test_only_the_kernel_tells_of_a_kill_for_memory(void)
{
    CHECK(oom_victim("3,610,9,-;Out of memory: Killed process 87 (app) total-vm:1kB") == 87);
    CHECK(oom_victim("3,1,9,-;Memory cgroup out of memory: Killed process 5 (a) x") == 5);
    CHECK(oom_victim("12,610,9,-;Out of memory: Killed process 87 (app)") == -1); /* written by a process */
    CHECK(oom_victim("6,1,9,-;app: Out of memory: Killed process 87 (app)") == -1);
    CHECK(oom_victim("6,1,9,-;usb 1-1: new device") == -1);
    CHECK(oom_victim("") == -1 && oom_victim("3") == -1 && oom_victim("3,1;Out of memory: Killed process ") == -1);
}

static bool parse_card(struct identity_card *card)
{
    struct failure failure;
    uint8_t *copy = malloc(used ? used : 1);
    CHECK(copy);
    memcpy(copy, raw, used);
    memset(card, 0, sizeof *card);
    bool sound = card_parse(card, copy, used, &failure);
    card->entropy = NULL;
    free(copy);
    used = 0;
    return sound;
}

static void test_a_card(void)
{
    struct identity_card card;
    uint8_t generation[8], mac[MAC_SIZE] = {2, 0, 0, 0, 0, 9};
    put_u64(generation, 7);
    put_text(TAG_HOSTNAME, "copy");
    put_bytes(TAG_GENERATION, generation, 8);
    put_bytes(TAG_MAC, mac, sizeof mac);
    put_bytes(TAG_IPV4, "\x0a\x40\x00\x02", 4);
    put_bytes(TAG_MACHINE_ID, "0123456789abcdef", MACHINE_ID_SIZE);
    CHECK(parse_card(&card));
    CHECK(!strcmp(card.hostname, "copy") && card.generation == 7 && card.has_network);
    CHECK(card.has_mac && card.mac[5] == 9 && card.has_machine_id && card.machine_id[15] == 'f');
    card_free(&card);
    CHECK(parse_card(&card));
    CHECK(!card.has_network && !card.has_mac && !card.has_machine_id && !card.hostname && !card.generation);
    put_bytes(TAG_MAC, mac, 5);
    CHECK(!parse_card(&card));
    put_bytes(TAG_GENERATION, generation, 4);
    CHECK(!parse_card(&card));
    card_free(&card);
}

int main(void)
{
    test_a_card();
    test_a_whole_configuration();
    test_volumes_say_their_disk_and_place();
    test_malformed_fields_are_refused();
    test_a_field_that_is_cut_anywhere_is_refused();
    test_random_fields_do_no_harm();
    test_an_assignment_replaces_an_older_one();
    test_only_the_kernel_tells_of_a_kill_for_memory();
    return 0;
}
