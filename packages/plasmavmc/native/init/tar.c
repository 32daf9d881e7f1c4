#include "tar.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    NAME = 0, NAME_SIZE = 100, MODE = 100, OWNER = 108, GROUP = 116, SIZE = 124, TIME = 136, CHECKSUM = 148,
    KIND = 156, LINK = 157, MAGIC = 257, PREFIX = 345, PREFIX_SIZE = 155,
    CHUNK = 64 * 1024,
};

static const uint64_t size_limit = 1ULL << 33; /* eleven octal digits */

/* All of it, or what there is before the end. -1 with errno. */
static ssize_t read_all(int fd, uint8_t *into, size_t length)
{
    size_t have = 0;
    while (have < length) {
        ssize_t got = read(fd, into + have, length - have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        have += (size_t)got;
    }
    return (ssize_t)have;
}

static bool write_all(int fd, const uint8_t *bytes, size_t length)
{
    while (length) {
        ssize_t put = write(fd, bytes, length);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return false;
        bytes += put;
        length -= (size_t)put;
    }
    return true;
}

static uint64_t padding(uint64_t size)
{
    return (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK;
}

/* Reading */

static bool octal(const uint8_t *text, size_t length, uint64_t *number)
{
    *number = 0;
    size_t at = 0;
    while (at < length && text[at] == ' ')
        at++;
    for (; at < length && text[at] >= '0' && text[at] <= '7'; at++)
        *number = *number * 8 + (uint64_t)(text[at] - '0');
    return at == length || text[at] == '\0' || text[at] == ' ';
}

static uint32_t sum_of(const uint8_t *block)
{
    uint32_t sum = 0;
    for (int i = 0; i < TAR_BLOCK; i++)
        sum += i >= CHECKSUM && i < CHECKSUM + 8 ? ' ' : block[i];
    return sum;
}

static size_t length_of(const uint8_t *field, size_t room)
{
    const uint8_t *end = memchr(field, '\0', room);
    return end ? (size_t)(end - field) : room;
}

static void take_text(char *into, const uint8_t *field, size_t room)
{
    size_t length = length_of(field, room);
    memcpy(into, field, length);
    into[length] = '\0';
}

static void take_path(struct tar_member *member, const uint8_t *block)
{
    size_t prefix = memcmp(block + MAGIC, "ustar\0", 6) ? 0 : length_of(block + PREFIX, PREFIX_SIZE);
    memcpy(member->path, block + PREFIX, prefix);
    if (prefix)
        member->path[prefix++] = '/';
    take_text(member->path + prefix, block + NAME, NAME_SIZE);
}

struct extended {
    bool has_path, has_target, has_size;
    uint64_t size;
};

static bool take_record(struct tar_member *member, struct extended *extended, const char *key, const char *value,
                        size_t length)
{
    if (length >= TAR_PATH_MAX)
        return false;
    if (!strncmp(key, "path=", 5)) {
        memcpy(member->path, value, length);
        member->path[length] = '\0';
        extended->has_path = true;
    } else if (!strncmp(key, "linkpath=", 9)) {
        memcpy(member->target, value, length);
        member->target[length] = '\0';
        extended->has_target = true;
    } else if (!strncmp(key, "size=", 5)) {
        extended->size = strtoull(value, NULL, 10);
        extended->has_size = true;
    }
    return true;
}

/* Records of "length key=value\n"; `text` ends in a NUL. */
static bool take_extended(struct tar_member *member, struct extended *extended, char *text, size_t length)
{
    while (length) {
        char *key;
        unsigned long record = strtoul(text, &key, 10);
        if (key == text || *key != ' ' || record > length || text + record <= key + 1 || text[record - 1] != '\n')
            return false;
        char *end = text + record - 1;
        key++;
        char *value = memchr(key, '=', (size_t)(end - key));
        *end = '\0';
        if (!value || !take_record(member, extended, key, value + 1, (size_t)(end - value - 1)))
            return false;
        text += record;
        length -= record;
    }
    return true;
}

static bool read_extended(int fd, uint64_t size, struct tar_member *member, struct extended *extended)
{
    static char text[TAR_EXTENDED_MAX + TAR_BLOCK + 1];
    if (size > TAR_EXTENDED_MAX)
        return false;
    size_t stored = (size_t)(size + padding(size));
    if (read_all(fd, (uint8_t *)text, stored) != (ssize_t)stored)
        return false;
    text[size] = '\0';
    return take_extended(member, extended, text, (size_t)size);
}

static bool is_zero(const uint8_t *block)
{
    for (int i = 0; i < TAR_BLOCK; i++)
        if (block[i])
            return false;
    return true;
}

enum tar_event tar_next(int fd, struct tar_member *member)
{
    uint8_t block[TAR_BLOCK];
    struct extended extended = {0};
    uint64_t sum, mode, mtime, size;
    memset(member, 0, sizeof *member);
    for (;;) {
        ssize_t length = read_all(fd, block, sizeof block);
        if (length != TAR_BLOCK)
            return TAR_BAD;
        if (is_zero(block))
            return TAR_END;
        if (!octal(block + CHECKSUM, 8, &sum) || sum != sum_of(block) || !octal(block + SIZE, 12, &size))
            return TAR_BAD;
        if (block[KIND] != 'x')
            break;
        if (!read_extended(fd, size, member, &extended))
            return TAR_BAD;
    }
    if (!octal(block + MODE, 8, &mode) || !octal(block + TIME, 12, &mtime))
        return TAR_BAD;
    member->kind = block[KIND] ? (char)block[KIND] : TAR_FILE;
    member->mode = (uint32_t)mode;
    member->mtime = (int64_t)mtime;
    if (!extended.has_path)
        take_path(member, block);
    if (!extended.has_target)
        take_text(member->target, block + LINK, NAME_SIZE);
    if (member->kind == TAR_FILE)
        member->size = extended.has_size ? extended.size : size;
    return TAR_MEMBER;
}

bool tar_take_data(int fd, uint64_t size, int into)
{
    static uint8_t bytes[CHUNK];
    for (uint64_t left = size + padding(size), data = size; left;) {
        size_t wanted = left < sizeof bytes ? (size_t)left : sizeof bytes;
        ssize_t got = read_all(fd, bytes, wanted);
        if (got != (ssize_t)wanted) {
            errno = got < 0 ? errno : 0;
            return false;
        }
        size_t mine = data < wanted ? (size_t)data : wanted;
        if (into >= 0 && !write_all(into, bytes, mine))
            return false;
        data -= mine;
        left -= wanted;
    }
    return true;
}

/* Writing */

static void put_octal(uint8_t *at, size_t width, uint64_t number)
{
    char text[24];
    snprintf(text, sizeof text, "%0*llo", (int)width - 1, (unsigned long long)number);
    memcpy(at, text, width);
}

static bool put_block(int fd, const struct tar_member *member, char kind, uint64_t size, const char *path)
{
    uint8_t block[TAR_BLOCK] = {0};
    uint64_t mtime = member->mtime < 0 ? 0 : (uint64_t)member->mtime;
    memcpy(block + NAME, path, strnlen(path, NAME_SIZE));
    put_octal(block + MODE, 8, member->mode);
    put_octal(block + OWNER, 8, 0);
    put_octal(block + GROUP, 8, 0);
    put_octal(block + SIZE, 12, size < size_limit ? size : size_limit - 1);
    put_octal(block + TIME, 12, mtime < size_limit ? mtime : size_limit - 1);
    block[KIND] = (uint8_t)kind;
    if (kind == TAR_SYMLINK)
        memcpy(block + LINK, member->target, strnlen(member->target, NAME_SIZE));
    memcpy(block + MAGIC, "ustar\0" "00", 8);
    put_octal(block + CHECKSUM, 7, sum_of(block));
    block[CHECKSUM + 7] = ' ';
    return write_all(fd, block, sizeof block);
}

/* A record counts its own length's digits. */
static size_t put_record(char *at, const char *key, const char *value)
{
    size_t body = strlen(key) + strlen(value) + 3, length = body + 1;
    for (int tries = 0; tries < 3; tries++)
        length = body + (size_t)snprintf(NULL, 0, "%zu", length);
    return (size_t)sprintf(at, "%zu %s=%s\n", length, key, value);
}

static bool put_extended(int fd, const struct tar_member *member)
{
    static char records[TAR_EXTENDED_MAX + TAR_BLOCK];
    size_t length = 0;
    char size[24];
    if (strlen(member->path) > NAME_SIZE)
        length += put_record(records + length, "path", member->path);
    if (member->kind == TAR_SYMLINK && strlen(member->target) > NAME_SIZE)
        length += put_record(records + length, "linkpath", member->target);
    if (member->size >= size_limit) {
        snprintf(size, sizeof size, "%llu", (unsigned long long)member->size);
        length += put_record(records + length, "size", size);
    }
    if (!length)
        return true;
    memset(records + length, 0, TAR_BLOCK);
    return put_block(fd, member, 'x', length, "pax") &&
           write_all(fd, (const uint8_t *)records, length + (size_t)padding(length));
}

bool tar_put(int fd, const struct tar_member *member)
{
    return put_extended(fd, member) &&
           put_block(fd, member, member->kind, member->kind == TAR_FILE ? member->size : 0, member->path);
}

bool tar_put_data(int fd, int from, uint64_t size, bool *short_of)
{
    static uint8_t bytes[CHUNK];
    *short_of = false;
    for (uint64_t left = size; left;) {
        size_t wanted = left < sizeof bytes ? (size_t)left : sizeof bytes;
        ssize_t got = *short_of ? 0 : read_all(from, bytes, wanted);
        if (got != (ssize_t)wanted) {
            *short_of = true; /* it shrank, or cannot be read: the archive stays sound */
            memset(bytes + (got < 0 ? 0 : got), 0, wanted - (got < 0 ? 0 : (size_t)got));
        }
        if (!write_all(fd, bytes, wanted))
            return false;
        left -= wanted;
    }
    memset(bytes, 0, TAR_BLOCK);
    return write_all(fd, bytes, (size_t)padding(size));
}

bool tar_put_end(int fd)
{
    static const uint8_t zeros[2 * TAR_BLOCK];
    return write_all(fd, zeros, sizeof zeros);
}
