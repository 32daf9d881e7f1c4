#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "tlv.h"

static char *copy_text(const char *text, size_t length)
{
    if (memchr(text, '\0', length))
        return NULL;
    char *copy = malloc(length + 1);
    if (!copy)
        return NULL;
    memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

bool texts_add(struct texts *texts, const char *text, size_t length)
{
    if (texts->count >= TEXTS_MAX)
        return false;
    char **items = realloc(texts->items, (texts->count + 2) * sizeof *items);
    if (!items)
        return false;
    texts->items = items;
    items[texts->count] = copy_text(text, length);
    if (!items[texts->count])
        return false;
    items[++texts->count] = NULL;
    return true;
}

void texts_free(struct texts *texts)
{
    for (size_t i = 0; i < texts->count; i++)
        free(texts->items[i]);
    free(texts->items);
    *texts = (struct texts){0};
}

static char **find(const struct texts *texts, const char *key, size_t length)
{
    for (size_t i = 0; i < texts->count; i++)
        if (!strncmp(texts->items[i], key, length) && texts->items[i][length] == '=')
            return &texts->items[i];
    return NULL;
}

const char *texts_value(const struct texts *texts, const char *key)
{
    char **item = find(texts, key, strlen(key));
    return item ? *item + strlen(key) + 1 : NULL;
}

bool texts_assign(struct texts *texts, const char *assignment)
{
    char **item = find(texts, assignment, strcspn(assignment, "="));
    if (!item)
        return texts_add(texts, assignment, strlen(assignment));
    char *copy = copy_text(assignment, strlen(assignment));
    if (!copy)
        return false;
    free(*item);
    *item = copy;
    return true;
}

static bool set_text(char **slot, const struct tlv *field)
{
    free(*slot);
    *slot = copy_text((const char *)field->value, field->length);
    return *slot != NULL;
}

static bool set_terminal(struct command *command, const struct tlv *field)
{
    if (field->length != 4)
        return false;
    command->terminal = true;
    command->rows = get_u16(field->value);
    command->columns = get_u16(field->value + 2);
    return true;
}

static bool set_stdio(struct command *command, const struct tlv *field)
{
    if (field->length != 1)
        return false;
    command->attached = field->value[0] & STDIO_ATTACHED;
    command->open_stdin = field->value[0] & STDIO_OPEN;
    return true;
}

static bool command_field(struct command *command, const struct tlv *field)
{
    switch (field->tag) {
    case TAG_ARG:
        return texts_add(&command->arguments, (const char *)field->value, field->length);
    case TAG_ENV:
        return memchr(field->value, '=', field->length) &&
               texts_add(&command->environment, (const char *)field->value, field->length);
    case TAG_USER:
        return set_text(&command->user, field);
    case TAG_WORKDIR:
        return set_text(&command->workdir, field);
    case TAG_TERMINAL:
        return set_terminal(command, field);
    case TAG_STDIO:
        return set_stdio(command, field);
    default:
        return true;
    }
}

static bool set_address(struct identity_card *card, uint32_t *slot, const struct tlv *field)
{
    if (field->length != 4)
        return false;
    memcpy(slot, field->value, 4);
    card->has_network = true;
    return true;
}

static bool set_bytes(uint8_t *slot, size_t size, bool *present, const struct tlv *field)
{
    if (field->length != size)
        return false;
    memcpy(slot, field->value, size);
    *present = true;
    return true;
}

static bool set_u64(uint64_t *slot, const struct tlv *field)
{
    if (field->length != 8)
        return false;
    *slot = get_u64(field->value);
    return true;
}

static bool card_field(struct identity_card *card, const struct tlv *field)
{
    switch (field->tag) {
    case TAG_HOSTNAME:
        return set_text(&card->hostname, field);
    case TAG_IPV4:
        return set_address(card, &card->ipv4, field);
    case TAG_GATEWAY:
        return set_address(card, &card->gateway, field);
    case TAG_NAMESERVER:
        return texts_add(&card->nameservers, (const char *)field->value, field->length);
    case TAG_ENTROPY:
        card->entropy = field->value;
        card->entropy_length = field->length;
        return true;
    case TAG_TIME:
        return set_u64(&card->unix_time_ns, field);
    case TAG_MAC:
        return set_bytes(card->mac, sizeof card->mac, &card->has_mac, field);
    case TAG_IPV6:
        return set_bytes(card->ipv6, sizeof card->ipv6, &card->has_ipv6, field);
    case TAG_GATEWAY_MAC:
        return set_bytes(card->gateway_mac, sizeof card->gateway_mac, &card->has_gateway_mac, field);
    case TAG_MACHINE_ID:
        return set_bytes(card->machine_id, sizeof card->machine_id, &card->has_machine_id, field);
    case TAG_GENERATION:
        return set_u64(&card->generation, field);
    default:
        return true;
    }
}

static bool add_file(struct config *config, const struct tlv *field)
{
    if (field->length < 6 || config->file_count >= FILES_MAX)
        return false;
    size_t path_length = get_u16(field->value + 4);
    if (path_length < 2 || path_length > field->length - 6 || field->value[6] != '/')
        return false;
    struct file *files = realloc(config->files, (config->file_count + 1) * sizeof *files);
    if (!files)
        return false;
    config->files = files;
    char *path = copy_text((const char *)field->value + 6, path_length);
    if (!path)
        return false;
    files[config->file_count++] = (struct file){
        .path = path,
        .mode = get_u32(field->value) & 07777,
        .content = field->value + 6 + path_length,
        .length = field->length - 6 - path_length,
    };
    return true;
}

static bool add_volume(struct config *config, const struct tlv *field)
{
    if (field->length < 4 || field->value[2] != '/' || config->volume_count >= VOLUMES_MAX)
        return false;
    uint8_t disk = field->value[0];
    if (disk < FIRST_VOLUME || disk >= FIRST_VOLUME + VOLUMES_MAX)
        return false;
    char *place = copy_text((const char *)field->value + 2, field->length - 2);
    if (!place)
        return false;
    config->volumes[config->volume_count++] =
        (struct volume){.disk = disk, .read_only = field->value[1] & VOLUME_READ_ONLY, .place = place};
    return true;
}

static bool config_field(struct config *config, const struct tlv *field)
{
    if (field->tag == TAG_FILE)
        return add_file(config, field);
    if (field->tag == TAG_VOLUME)
        return add_volume(config, field);
    return card_field(&config->card, field) && command_field(&config->command, field);
}

static bool finish(bool sound, struct command *command, struct failure *failure)
{
    if (!sound)
        return fail(failure, "bad-config", "malformed field");
    if (!command->arguments.count || !command->arguments.items[0][0])
        return fail(failure, "bad-config", "no command was given");
    return true;
}

bool config_parse(struct config *config, const uint8_t *raw, size_t length, struct failure *failure)
{
    struct tlv field;
    bool sound;
    const uint8_t *end = raw + length;
    while (tlv_next(&raw, end, &field, &sound))
        if (!config_field(config, &field))
            return fail(failure, "bad-config", "field %u has no meaning", field.tag);
    return finish(sound, &config->command, failure);
}

bool card_parse(struct identity_card *card, const uint8_t *raw, size_t length, struct failure *failure)
{
    struct tlv field;
    bool sound;
    const uint8_t *end = raw + length;
    while (tlv_next(&raw, end, &field, &sound))
        if (!card_field(card, &field))
            return fail(failure, "bad-config", "field %u has no meaning", field.tag);
    return sound || fail(failure, "bad-config", "malformed field");
}

bool command_parse(struct command *command, const uint8_t *raw, size_t length, struct failure *failure)
{
    struct tlv field;
    bool sound;
    const uint8_t *end = raw + length;
    while (tlv_next(&raw, end, &field, &sound))
        if (!command_field(command, &field))
            return fail(failure, "bad-config", "field %u has no meaning", field.tag);
    return finish(sound, command, failure);
}

void config_forget_raw(struct config *config)
{
    for (size_t i = 0; i < config->file_count; i++)
        free(config->files[i].path);
    free(config->files);
    config->files = NULL;
    config->file_count = 0;
    config->card.entropy = NULL;
    config->card.entropy_length = 0;
}

void command_free(struct command *command)
{
    texts_free(&command->arguments);
    texts_free(&command->environment);
    free(command->user);
    free(command->workdir);
    *command = (struct command){0};
}

void card_free(struct identity_card *card)
{
    texts_free(&card->nameservers);
    free(card->hostname);
    *card = (struct identity_card){0};
}

void config_free(struct config *config)
{
    command_free(&config->command);
    config_forget_raw(config);
    for (size_t i = 0; i < config->volume_count; i++)
        free(config->volumes[i].place);
    card_free(&config->card);
    *config = (struct config){0};
}
