#include "vsock.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ANY_CID = -1, HOST_CID = 2, BACKLOG = 4 };

/* vsock(7); musl has no kernel headers of its own. */
struct vsock_address {
    sa_family_t family;
    unsigned short reserved;
    unsigned port, cid;
    unsigned char zero[4];
};

union any_address {
    struct sockaddr plain;
    struct vsock_address vsock;
    struct sockaddr_storage room;
};

int vsock_listen(unsigned port)
{
    union any_address address = {.vsock = {.family = AF_VSOCK, .port = port, .cid = (unsigned)ANY_CID}};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && bind(fd, &address.plain, sizeof address.vsock) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

int vsock_accept(int listener)
{
    for (;;) {
        union any_address peer;
        socklen_t size = sizeof peer;
        memset(&peer, 0, sizeof peer);
        int fd = accept4(listener, &peer.plain, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 || peer.plain.sa_family != AF_VSOCK || peer.vsock.cid == HOST_CID)
            return fd;
        close(fd);
    }
}
