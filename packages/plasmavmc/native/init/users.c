#include "users.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 16384, NAME_MAX_BYTES = 256, FIELDS = 7 };

/* A number from 0 to 2^31 - 1 and nothing else; -1 if it is not one. */
static long number_of(const char *text)
{
    long value = 0;
    if (!*text || strlen(text) > 10)
        return -1;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return -1;
        value = value * 10 + (*text - '0');
    }
    return value <= 0x7FFFFFFF ? value : -1;
}

/* O_NONBLOCK: an image may hold a FIFO in this place. */
static FILE *open_table(const char *etc, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", etc, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return NULL;
    FILE *table = fdopen(fd, "r");
    if (!table)
        close(fd);
    return table;
}

static void skip_line(FILE *table)
{
    for (int byte = 0; byte != '\n' && byte != EOF;)
        byte = getc(table);
}

/* The next line's fields, split in place; missing ones are empty. Lines beyond all measure are passed over. */
static bool next_line(FILE *table, char *line, char *fields[FIELDS])
{
    while (fgets(line, LINE_MAX_BYTES, table)) {
        size_t length = strcspn(line, "\n");
        if (length == LINE_MAX_BYTES - 1) {
            skip_line(table);
            continue;
        }
        line[length] = '\0';
        for (int i = 0; i < FIELDS; i++) {
            size_t end = strcspn(line, ":");
            fields[i] = line;
            line += line[end] ? end + 1 : end;
            fields[i][end] = '\0';
        }
        return true;
    }
    return false;
}

static bool matches(const char *name, const char *number, const char *wanted)
{
    return *name && (!strcmp(name, wanted) || (number_of(wanted) >= 0 && number_of(wanted) == number_of(number)));
}

/* Fill in uid, gid, home and name from passwd; false where no line matches. */
static bool find_user(const char *etc, const char *wanted, struct identity *identity, char *name)
{
    char line[LINE_MAX_BYTES];
    char *fields[FIELDS];
    bool found = false;
    FILE *table = open_table(etc, "passwd");
    if (!table)
        return false;
    while (!found && next_line(table, line, fields)) {
        if (!matches(fields[0], fields[2], wanted) || number_of(fields[2]) < 0 || number_of(fields[3]) < 0)
            continue;
        identity->uid = (uid_t)number_of(fields[2]);
        identity->gid = (gid_t)number_of(fields[3]);
        if (fields[5][0] == '/')
            snprintf(identity->home, sizeof identity->home, "%s", fields[5]);
        snprintf(name, NAME_MAX_BYTES, "%s", fields[0]);
        found = true;
    }
    fclose(table);
    return found;
}

static bool find_group(const char *etc, const char *wanted, gid_t *gid)
{
    char line[LINE_MAX_BYTES];
    char *fields[FIELDS];
    bool found = false;
    FILE *table = open_table(etc, "group");
    if (!table)
        return false;
    while (!found && next_line(table, line, fields)) {
        if (!matches(fields[0], fields[2], wanted) || number_of(fields[2]) < 0)
            continue;
        *gid = (gid_t)number_of(fields[2]);
        found = true;
    }
    fclose(table);
    return found;
}

static bool lists(const char *members, const char *name)
{
    size_t length = strlen(name);
    while (*members) {
        size_t end = strcspn(members, ",");
        if (end == length && !strncmp(members, name, length))
            return true;
        members += members[end] ? end + 1 : end;
    }
    return false;
}

static void find_memberships(const char *etc, const char *name, struct identity *identity)
{
    char line[LINE_MAX_BYTES];
    char *fields[FIELDS];
    FILE *table = open_table(etc, "group");
    if (!table)
        return;
    while (identity->group_count < GROUPS_MAX && next_line(table, line, fields))
        if (lists(fields[3], name) && number_of(fields[2]) >= 0)
            identity->groups[identity->group_count++] = (gid_t)number_of(fields[2]);
    fclose(table);
}

bool identity_find(const char *etc, const char *text, struct identity *identity, struct failure *failure)
{
    char user[NAME_MAX_BYTES], name[NAME_MAX_BYTES] = "";
    const char *colon = strchr(text, ':');
    *identity = (struct identity){.home = "/"};
    if (strlen(text) >= sizeof user)
        return fail(failure, "no-such-user", "the name of the user is too long");
    snprintf(user, sizeof user, "%.*s", (int)strcspn(text, ":"), text);
    if (!find_user(etc, *user ? user : "0", identity, name)) {
        if (*user && number_of(user) < 0)
            return fail(failure, "no-such-user", "user %s is not in the image's /etc/passwd", user);
        identity->uid = *user ? (uid_t)number_of(user) : 0;
    }
    if (!colon || !colon[1]) {
        if (*name)
            find_memberships(etc, name, identity);
        return true;
    }
    if (!find_group(etc, colon + 1, &identity->gid)) {
        if (number_of(colon + 1) < 0)
            return fail(failure, "no-such-user", "group %s is not in the image's /etc/group", colon + 1);
        identity->gid = (gid_t)number_of(colon + 1);
    }
    return true;
}
