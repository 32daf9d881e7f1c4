#include "port.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "clock.h"

enum { ASK_AGAIN_MS = 1000 };

static const char ports[] = "/sys/class/virtio-ports";

static bool has_name(const char *entry, const char *wanted)
{
    char path[320], name[64];
    snprintf(path, sizeof path, "%s/%.200s/name", ports, entry);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t length = read(fd, name, sizeof name - 1);
    close(fd);
    if (length <= 0)
        return false;
    name[length] = '\0';
    name[strcspn(name, "\n")] = '\0';
    return !strcmp(name, wanted);
}

static int open_named(const char *name)
{
    int fd = -1;
    char path[288];
    DIR *directory = opendir(ports);
    if (!directory)
        return -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(directory));) {
        if (entry->d_name[0] == '.' || !has_name(entry->d_name, name))
            continue;
        snprintf(path, sizeof path, "/dev/%.200s", entry->d_name);
        fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    closedir(directory);
    return fd;
}

int port_open(const char *name, int patience_ms)
{
    int64_t give_up = now_ms() + patience_ms;
    for (;;) {
        int fd = open_named(name);
        if (fd >= 0 || now_ms() >= give_up)
            return fd;
        usleep(500); /* its name comes in a message of the host's, which no descriptor of ours announces */
    }
}

bool port_attach(struct port *port, int fd)
{
    struct epoll_event interest = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    *port = (struct port){.fd = fd, .edges = epoll_create1(EPOLL_CLOEXEC), .ask_again = NEVER};
    return port->edges >= 0 && epoll_ctl(port->edges, EPOLL_CTL_ADD, fd, &interest) == 0;
}

void port_watch(struct port *port, struct watch *watch, bool waiting)
{
    watch_for(watch, port->edges, POLLIN, &port->changed);
    if (!port->away && !waiting)
        port->ask_again = NEVER;
    else if (port->ask_again == NEVER)
        port->ask_again = now_ms() + ASK_AGAIN_MS;
    watch_until(watch, port->ask_again);
}

bool port_refresh(struct port *port)
{
    struct epoll_event event;
    bool was_away = port->away;
    bool overdue = port->ask_again != NEVER && now_ms() >= port->ask_again;
    if (!port->changed && !overdue)
        return false;
    port->changed = false;
    if (overdue)
        port->ask_again = NEVER;
    while (epoll_wait(port->edges, &event, 1, 0) > 0)
        continue;
    struct pollfd level = {.fd = port->fd, .events = POLLIN | POLLOUT};
    if (poll(&level, 1, 0) < 0)
        return false;
    port->readable = level.revents & POLLIN;
    port->writable = level.revents & POLLOUT;
    port->away = level.revents & POLLHUP;
    return port->away && !was_away;
}

size_t port_read(struct port *port, uint8_t *into, size_t room)
{
    ssize_t length = read(port->fd, into, room);
    if (length > 0)
        return (size_t)length;
    if (length == 0 || errno != EINTR)
        port->readable = false;
    return 0;
}
