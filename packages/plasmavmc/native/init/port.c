#include "port.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "files.h"
#include "vsock.h"

enum { ASK_AGAIN_MS = 1000 };

static const char ports[] = "/sys/class/virtio-ports";

static bool has_name(const char *entry, const char *wanted)
{
    char path[320], name[64];
    snprintf(path, sizeof path, "%s/%.200s/name", ports, entry);
    return read_line(path, name, sizeof name) && !strcmp(name, wanted);
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

static bool listens(int fd)
{
    int answer = 0;
    socklen_t size = sizeof answer;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &answer, &size) == 0 && answer;
}

static bool announce(const struct port *port, int fd)
{
    struct epoll_event interest = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    return epoll_ctl(port->edges, EPOLL_CTL_ADD, fd, &interest) == 0;
}

bool port_attach(struct port *port, int fd)
{
    *port = (struct port){.fd = fd, .listener = -1, .edges = epoll_create1(EPOLL_CLOEXEC), .ask_again = NEVER};
    if (listens(fd))
        *port = (struct port){.fd = -1, .listener = fd, .edges = port->edges, .away = true, .ask_again = NEVER};
    return port->edges >= 0 && announce(port, fd);
}

static void hang_up(struct port *port)
{
    if (port->fd >= 0)
        close(port->fd);
    port->fd = -1;
    port->readable = port->writable = false;
}

/* The last one to connect is the host: it alone knows whether its older connection is of any use. */
static bool take_newest(struct port *port)
{
    bool came = false;
    if (port->listener < 0)
        return false;
    for (int fd; (fd = vsock_accept(port->listener)) >= 0; came = true) {
        hang_up(port);
        port->fd = fd;
        if (!announce(port, fd))
            hang_up(port);
    }
    return came;
}

void port_watch(struct port *port, struct watch *watch, bool waiting)
{
    if (port->changed)
        watch_until(watch, now_ms());
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
    bool came = take_newest(port);
    struct pollfd level = {.fd = port->fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    if (poll(&level, 1, 0) < 0)
        return false;
    port->readable = level.revents & POLLIN;
    port->writable = level.revents & POLLOUT;
    port->away = port->fd < 0 || level.revents & (POLLHUP | POLLERR | POLLRDHUP);
    return (port->away || came) && !was_away;
}

size_t port_read(struct port *port, uint8_t *into, size_t room)
{
    ssize_t length = read(port->fd, into, room);
    if (length > 0)
        return (size_t)length;
    if (length == 0 || errno != EINTR)
        port->readable = false;
    if (port->listener >= 0 && (length == 0 || (errno != EINTR && errno != EAGAIN))) {
        hang_up(port);
        port->changed = true;
    }
    return 0;
}
