#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"
#include "users.h"

enum { OPEN_FILES = 65536 };

static void set_nonblocking(int fd)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

bool pipe_for_reading(int *ours, int *theirs)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    set_nonblocking(ends[0]);
    *ours = ends[0];
    *theirs = ends[1];
    return true;
}

bool pipe_for_writing(int *ours, int *theirs)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    set_nonblocking(ends[1]);
    *theirs = ends[0];
    *ours = ends[1];
    return true;
}

static int group_members = -1;

void spawn_joins(int members)
{
    group_members = members;
}

/* A kernel without such namespaces goes without. */
bool spawn_join_group(struct failure *failure)
{
    if (group_members < 0)
        return true;
    if (write(group_members, "0", 1) != 1)
        return fail(failure, "no-process", "cannot join the others: %s", strerror(errno));
    if (unshare(CLONE_NEWCGROUP) < 0 && errno != EINVAL)
        return fail(failure, "no-process", "cannot make a namespace: %s", strerror(errno));
    return true;
}

static void reset_signals(void)
{
    sigset_t none;
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static bool take_io(const struct spawn_io *io, struct failure *failure)
{
    /* Ours lie above 2 (see main), so no dup2 overwrites a source of the next. */
    if (dup2(io->in, 0) < 0 || dup2(io->out, 1) < 0 || dup2(io->error, 2) < 0)
        return fail(failure, "no-stdio", "cannot set up stdin, stdout and stderr: %s", strerror(errno));
    if (setsid() < 0 || (io->terminal && ioctl(0, TIOCSCTTY, 0) < 0))
        return fail(failure, "no-stdio", "cannot make a session: %s", strerror(errno));
    return true;
}

static bool enter_workdir(const char *path, struct failure *failure)
{
    if (!path || !*path)
        path = "/";
    if (path[0] != '/')
        return fail(failure, "bad-workdir", "the working directory %s is not absolute", path);
    if (chdir(path) < 0 && errno == ENOENT)
        make_directories(path, 0755);
    if (chdir(path) < 0)
        return fail(failure, "bad-workdir", "cannot enter the working directory %s: %s", path, strerror(errno));
    return true;
}

/*
 * A process opens /dev/stdout by the inode of what is behind it, so that must be its own; devices
 * that all share (/dev/null) are left alone.
 */
static void own_stdio(uid_t uid, bool terminal)
{
    struct stat info;
    for (int fd = 0; fd < 3; fd++)
        if (!fstat(fd, &info) && (terminal || S_ISFIFO(info.st_mode)) && fchown(fd, uid, (gid_t)-1) < 0)
            return;
}

static bool become(const struct command *command, const struct spawn_io *io, struct identity *identity,
                   struct failure *failure)
{
    const char *user = command->user ? command->user : "";
    if (!identity_find("/etc", user, identity, failure))
        return false;
    if (!*user)
        return true; /* we are root already */
    own_stdio(identity->uid, io->terminal);
    if (setgroups(identity->group_count, identity->groups) < 0 || setgid(identity->gid) < 0 ||
        setuid(identity->uid) < 0)
        return fail(failure, "no-such-user", "cannot become user %s: %s", user, strerror(errno));
    return true;
}

static bool set_default(struct texts *environment, const char *key, const char *value)
{
    char assignment[4352];
    if (texts_value(environment, key))
        return true;
    snprintf(assignment, sizeof assignment, "%s=%s", key, value);
    return texts_assign(environment, assignment);
}

static bool complete_environment(struct texts *environment, const struct identity *identity, bool terminal)
{
    char hostname[128] = "localhost";
    gethostname(hostname, sizeof hostname - 1);
    return set_default(environment, "PATH", DEFAULT_PATH) && set_default(environment, "HOSTNAME", hostname) &&
           set_default(environment, "HOME", identity->home) &&
           (!terminal || set_default(environment, "TERM", "xterm"));
}

static bool exec_failed(const char *program, int error, struct failure *failure)
{
    bool exists = strchr(program, '/') && access(program, F_OK) == 0;
    if (error == ENOENT && exists)
        return fail(failure, "no-such-command", "%s needs an interpreter or loader that the image lacks", program);
    if (error == ENOENT || error == ENOTDIR)
        return fail(failure, "no-such-command", "%s was not found in the image", program);
    return fail(failure, "not-executable", "cannot execute %s: %s", program, strerror(error));
}

/* Try each directory of PATH, as execvp does, but with the new environment's PATH and an exact answer. */
static bool exec_by_path(char **argv, char **environment, const char *path, struct failure *failure)
{
    char candidate[4096];
    int error = ENOENT;
    for (const char *at = path;; at++) {
        int length = (int)strcspn(at, ":");
        int size = snprintf(candidate, sizeof candidate, "%.*s/%s", length, length ? at : ".", argv[0]);
        if (length == 0)
            size = snprintf(candidate, sizeof candidate, "./%s", argv[0]);
        if (size < (int)sizeof candidate) {
            execve(candidate, argv, environment);
            if (errno != ENOENT && errno != ENOTDIR)
                error = errno;
        }
        at += length;
        if (!*at)
            return exec_failed(argv[0], error, failure);
    }
}

static bool run_program(const struct command *command, const struct texts *environment, struct failure *failure)
{
    char **argv = command->arguments.items;
    if (!strchr(argv[0], '/'))
        return exec_by_path(argv, environment->items, texts_value(environment, "PATH"), failure);
    execve(argv[0], argv, environment->items);
    return exec_failed(argv[0], errno, failure);
}

static bool become_program(struct command *command, const struct spawn_io *io, struct failure *failure)
{
    struct identity identity;
    struct rlimit files = {OPEN_FILES, OPEN_FILES};
    reset_signals();
    umask(022);
    setrlimit(RLIMIT_NOFILE, &files);
    return (io->apart || spawn_join_group(failure)) && take_io(io, failure) && enter_workdir(command->workdir, failure) &&
           become(command, io, &identity, failure) &&
           (complete_environment(&command->environment, &identity, io->terminal) ||
            fail(failure, "not-executable", "out of memory")) &&
           run_program(command, &command->environment, failure);
}

bool spawn(const struct command *command, const struct spawn_io *io, struct spawned *spawned, struct failure *failure)
{
    int told;
    if (!pipe_for_reading(&spawned->status, &told))
        return fail(failure, "no-process", "cannot make a pipe: %s", strerror(errno));
    spawned->pid = fork();
    if (spawned->pid == 0) {
        struct command mine = *command; /* the lists are ours since fork; their heads must be too */
        struct failure why = {0};
        become_program(&mine, io, &why);
        ssize_t written = write(told, &why, sizeof why);
        _exit(written == sizeof why ? 127 : 126);
    }
    close(told);
    if (spawned->pid > 0)
        return true;
    close(spawned->status);
    return fail(failure, "no-process", "cannot fork: %s", strerror(errno));
}

bool spawn_started(int *status, struct failure *failure)
{
    struct failure why;
    ssize_t length = read(*status, &why, sizeof why);
    close(*status);
    *status = -1;
    if (length != sizeof why)
        return true;
    *failure = why;
    return false;
}
