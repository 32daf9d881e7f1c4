/*
 * The way to the host: a virtio-serial port, or, where a listening socket is attached (a vsock), its newest connection.
 *
 * Traps (Linux, drivers/char/virtio_console.c). While no host is attached, poll says POLLHUP at once and for ever,
 * so a level-triggered loop burns a core: the port is watched through an edge-triggered epoll, which speaks
 * once when the host leaves and once when it comes. A host that leaves and returns between two turns of the loop is not
 * noticed here at all; the channel's sync covers that. (Of a socket it is.) As edges can in principle be lost, whoever waits for the port
 * also asks again every second.
 */
#ifndef SWG_PORT_H
#define SWG_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "watch.h"

struct port {
    int fd;       /* -1: nobody is connected */
    int listener; /* -1: a serial port */
    int edges; /* the epoll */
    bool changed;
    bool readable, writable;
    bool away; /* no host is attached */
    int64_t ask_again;
};

/* Find the port of this name in /sys/class/virtio-ports and open it; waits up to `patience_ms` for it to appear. */
int port_open(const char *name, int patience_ms);

/* Watch an open descriptor as the port, or a listening one for the host to connect to. Neither may block. */
bool port_attach(struct port *port, int fd);

/* `waiting`: there is something that could not be written yet. */
void port_watch(struct port *port, struct watch *watch, bool waiting);

/* After the wait: bring the flags up to date. True where the host is found to have left. */
bool port_refresh(struct port *port);

/* Read what is there; 0 where there is nothing now (or nobody, see `away`). */
size_t port_read(struct port *port, uint8_t *into, size_t room);

#endif
