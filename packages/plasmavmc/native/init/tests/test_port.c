/* The way to the host where the host connects: who is heard, who has left, and that nobody is waited for. */

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "port.h"
#include "vsock.h"

static struct sockaddr_un address;
static socklen_t address_size;

/* A socket that listens where only this test can connect; the kernel chooses its name. */
static int listener(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    address = (struct sockaddr_un){.sun_family = AF_UNIX};
    address_size = sizeof address;
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address.sun_family) == 0 && listen(fd, 4) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &address_size) == 0);
    return fd;
}

static int connected(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(connect(fd, (struct sockaddr *)&address, address_size) == 0);
    return fd;
}

static struct port attached(void)
{
    struct port port;
    CHECK(port_attach(&port, listener()));
    CHECK(port.away && port.fd < 0);
    return port;
}

static void detach(struct port *port)
{
    if (port->fd >= 0)
        close(port->fd);
    close(port->listener);
    close(port->edges);
}

/* One wait of the loop's; at most `patience_ms`. */
static bool turn(struct port *port, int patience_ms)
{
    struct watch watch;
    watch_begin(&watch);
    port_watch(port, &watch, false);
    watch_until(&watch, now_ms() + patience_ms);
    watch_wait(&watch);
    return port_refresh(port);
}

static void say_as(int host, const char *words)
{
    CHECK(write(host, words, strlen(words)) == (ssize_t)strlen(words));
}

static void check_heard(struct port *port, const char *words)
{
    uint8_t heard[64];
    CHECK(port->readable);
    CHECK(port_read(port, heard, sizeof heard) == strlen(words) && !memcmp(heard, words, strlen(words)));
}

static void test_a_host_comes_and_leaves(void)
{
    struct port port = attached();
    CHECK(!turn(&port, 0) && port.away);
    int host = connected();
    CHECK(!turn(&port, 5000) && !port.away && port.writable && !port.readable);
    say_as(host, "hello");
    CHECK(!turn(&port, 5000));
    check_heard(&port, "hello");
    close(host);
    CHECK(turn(&port, 5000) && port.away);
    CHECK(!turn(&port, 0) && port.away); /* told once */
    detach(&port);
}

static void test_what_a_host_said_before_it_left_is_heard(void)
{
    struct port port = attached();
    uint8_t rest[8];
    int host = connected();
    turn(&port, 5000);
    say_as(host, "bye");
    close(host);
    CHECK(turn(&port, 5000));
    check_heard(&port, "bye");
    port.readable = true;
    CHECK(port_read(&port, rest, sizeof rest) == 0);
    CHECK(port.fd < 0);
    detach(&port);
}

/* Its descriptor is closed then, and no edge will ever tell. */
static void test_an_end_that_is_read_before_it_was_seen(void)
{
    struct port port = attached();
    uint8_t rest[8];
    int host = connected();
    turn(&port, 5000);
    say_as(host, "bye");
    turn(&port, 5000);
    close(host);
    check_heard(&port, "bye");
    CHECK(port_read(&port, rest, sizeof rest) == 0 && port.fd < 0 && !port.away);
    CHECK(turn(&port, 0) && port.away);
    detach(&port);
}

static void test_the_newest_host_is_the_one(void)
{
    struct port port = attached();
    int old = connected();
    turn(&port, 5000);
    say_as(old, "old");
    int new = connected();
    say_as(new, "new");
    CHECK(turn(&port, 5000) && !port.away); /* the old one is lost */
    check_heard(&port, "new");
    close(old);
    CHECK(!turn(&port, 0) && !port.away);
    close(new);
    CHECK(turn(&port, 5000) && port.away);
    int again = connected();
    CHECK(!turn(&port, 5000) && !port.away);
    close(again);
    detach(&port);
}

static void test_a_host_that_is_away_costs_nothing(void)
{
    struct port port = attached();
    struct epoll_event event;
    uint8_t byte;
    int host = connected();
    turn(&port, 5000);
    close(host);
    turn(&port, 5000);
    CHECK(port_read(&port, &byte, 1) == 0);
    turn(&port, 0);
    for (int i = 0; i < 3; i++)
        CHECK(epoll_wait(port.edges, &event, 1, 0) == 0 && !port.changed);
    detach(&port);
}

static void test_a_pair_is_a_port_that_is_there(void)
{
    struct port port;
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    CHECK(port_attach(&port, ends[0]) && port.listener < 0);
    say_as(ends[1], "serial");
    CHECK(!turn(&port, 5000) && !port.away);
    check_heard(&port, "serial");
    close(ends[0]);
    close(ends[1]);
    close(port.edges);
}

/* Where this host has vsocks; nobody can connect to itself by one, so only that far. */
static void test_a_vsock_listens(void)
{
    struct port port;
    int fd = vsock_listen((unsigned)-1);
    if (fd < 0) {
        CHECK(errno == EAFNOSUPPORT || errno == ENODEV);
        return;
    }
    CHECK(port_attach(&port, fd) && port.listener == fd && port.away);
    CHECK(!turn(&port, 0));
    CHECK(vsock_accept(fd) < 0 && errno == EAGAIN);
    detach(&port);
}

int main(void)
{
    test_a_host_comes_and_leaves();
    test_what_a_host_said_before_it_left_is_heard();
    test_an_end_that_is_read_before_it_was_seen();
    test_the_newest_host_is_the_one();
    test_a_host_that_is_away_costs_nothing();
    test_a_pair_is_a_port_that_is_there();
    test_a_vsock_listens();
    return 0;
}
