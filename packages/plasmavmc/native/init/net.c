#include "net.h"

#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static char interface[] = NET_INTERFACE;

static int control_socket(void)
{
    return socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

static struct sockaddr_in *put_address(struct sockaddr *at, uint32_t address)
{
    struct sockaddr_in *slot = (struct sockaddr_in *)(void *)at;
    memset(slot, 0, sizeof *slot);
    slot->sin_family = AF_INET;
    slot->sin_addr.s_addr = address;
    return slot;
}

static bool set_flags(int socket, const char *name, short flags)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    request.ifr_flags = flags;
    return ioctl(socket, SIOCSIFFLAGS, &request) == 0;
}

static bool bring_up(int socket, const char *name)
{
    return set_flags(socket, name, IFF_UP | IFF_RUNNING);
}

static bool set_address(int socket, unsigned long operation, uint32_t address)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
    put_address(&request.ifr_addr, address);
    return ioctl(socket, operation, &request) == 0;
}

static bool add_route(int socket, uint32_t target, uint32_t mask, uint32_t gateway, unsigned short flags)
{
    struct rtentry route = {0};
    put_address(&route.rt_dst, target);
    put_address(&route.rt_genmask, mask);
    put_address(&route.rt_gateway, gateway);
    route.rt_flags = (unsigned short)(RTF_UP | flags);
    route.rt_dev = interface;
    return ioctl(socket, SIOCADDRT, &route) == 0;
}

void net_loopback_up(void)
{
    int socket = control_socket();
    if (socket < 0)
        return;
    bring_up(socket, "lo");
    close(socket);
}

static bool set_mac(int socket, const uint8_t *mac)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(request.ifr_hwaddr.sa_data, mac, 6);
    return ioctl(socket, SIOCSIFHWADDR, &request) == 0;
}

bool net_configure(const uint8_t *mac, uint32_t ipv4, uint32_t gateway, struct failure *failure)
{
    int socket = control_socket();
    bool changed = socket >= 0 && set_flags(socket, interface, 0) && (!mac || set_mac(socket, mac));
    /* The route to the gateway comes first: only then is it a neighbour that the default route can name. */
    bool configured = changed && set_address(socket, SIOCSIFADDR, ipv4) &&
                      set_address(socket, SIOCSIFNETMASK, INADDR_NONE) && bring_up(socket, interface) &&
                      add_route(socket, gateway, INADDR_NONE, INADDR_ANY, RTF_HOST) &&
                      add_route(socket, INADDR_ANY, INADDR_ANY, gateway, RTF_GATEWAY);
    int error = errno;
    if (socket >= 0)
        close(socket);
    return configured || fail(failure, "bad-network", "cannot configure %s: %s", interface, strerror(error));
}
