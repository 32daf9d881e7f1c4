#include "copy.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.h"
#include "tlv.h"

enum { STATUS_FD = 3 };

int open_beneath(int directory, const char *path)
{
    return open_place_at(directory, path, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
}

void complain(const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length > 0)
        dprintf(STDERR_FILENO, "%s\n", line);
}

static bool take_text(char *into, size_t room, const struct tlv *field)
{
    if (!field->length || field->length >= room || memchr(field->value, '\0', field->length))
        return false;
    memcpy(into, field->value, field->length);
    into[field->length] = '\0';
    return true;
}

static bool take_field(struct copy *copy, const struct tlv *field)
{
    switch (field->tag) {
    case TAG_PATH:
        return take_text(copy->path, sizeof copy->path, field);
    case TAG_NAME:
        return take_text(copy->name, sizeof copy->name, field);
    case TAG_CONTENTS:
        copy->contents = true;
        return true;
    default:
        return true;
    }
}

static bool is_component(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}

bool copy_parse(struct copy *copy, bool in, const uint8_t *raw, size_t length, struct failure *failure)
{
    struct tlv field;
    bool sound;
    const uint8_t *end = raw + length;
    *copy = (struct copy){.in = in};
    while (tlv_next(&raw, end, &field, &sound))
        if (!take_field(copy, &field))
            return fail(failure, "bad-config", "field %u has no meaning", field.tag);
    if (!sound || copy->path[0] != '/')
        return fail(failure, "bad-config", "an absolute path is needed");
    if (in && !is_component(copy->name))
        return fail(failure, "bad-config", "the name of what comes in is none");
    return true;
}

static void close_status(void)
{
    close(STATUS_FD);
}

/* Nothing of init's stays open: without an exec no close-on-exec helps, and others' pipes would not end. */
static bool take_io(const struct spawn_io *io, int told)
{
    sigset_t none;
    sigemptyset(&none);
    int status = fcntl(told, F_DUPFD, 64);
    if (status < 0 || dup2(io->in, 0) < 0 || dup2(io->out, 1) < 0 || dup2(io->error, 2) < 0 ||
        dup2(status, STATUS_FD) < 0 || syscall(SYS_close_range, STATUS_FD + 1, ~0U, 0) < 0 || setsid() < 0)
        return false;
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    umask(0);
    return true;
}

static _Noreturn void run_child(const struct copy *copy, const struct spawn_io *io, int told)
{
    struct failure failure = {0};
    int code = 1;
    if (!spawn_join_group(&failure) || !take_io(io, told))
        _exit(126);
    if (copy->in ? copy_in(copy, close_status, &failure, &code) : copy_out(copy, close_status, &failure, &code))
        _exit(code);
    ssize_t written = write(STATUS_FD, &failure, sizeof failure);
    _exit(written == sizeof failure ? 127 : 126);
}

bool copy_spawn(const struct copy *copy, const struct spawn_io *io, struct spawned *spawned, struct failure *failure)
{
    int told;
    if (!pipe_for_reading(&spawned->status, &told))
        return fail(failure, "no-process", "cannot make a pipe: %s", strerror(errno));
    spawned->pid = fork();
    if (spawned->pid == 0)
        run_child(copy, io, told);
    close(told);
    if (spawned->pid > 0)
        return true;
    close(spawned->status);
    return fail(failure, "no-process", "cannot fork: %s", strerror(errno));
}
