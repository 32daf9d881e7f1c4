#include "oom.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RECORD_MAX = 8192, KILLED_CODE = 137 };

int oom_open(void)
{
    int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0)
        lseek(fd, 0, SEEK_END);
    return fd;
}

pid_t oom_victim(const char *record)
{
    static const char killed[] = "Killed process ";
    char *end;
    unsigned long priority = strtoul(record, &end, 10);
    const char *text = strchr(record, ';');
    /* Bits above the third are the facility; 0 is the kernel, which no process can claim to be. */
    if (end == record || priority >> 3 || !text)
        return -1;
    text++;
    if (strncmp(text, "Out of memory", 13) != 0 && strncmp(text, "Memory cgroup out of memory", 27) != 0)
        return -1;
    text = strstr(text, killed);
    if (!text)
        return -1;
    long pid = strtol(text + sizeof killed - 1, &end, 10);
    return pid > 0 && *end == ' ' ? (pid_t)pid : -1;
}

bool oom_killed(int kmsg, pid_t pid, int code)
{
    char record[RECORD_MAX];
    bool found = false;
    while (kmsg >= 0) {
        ssize_t length = read(kmsg, record, sizeof record - 1);
        if (length < 0 && (errno == EPIPE || errno == EINTR))
            continue; /* EPIPE: records were overwritten before we read them */
        if (length <= 0)
            break;
        record[length] = '\0';
        pid_t victim = oom_victim(record);
        found = found || victim == pid || (victim > 0 && code == KILLED_CODE);
    }
    return found;
}
