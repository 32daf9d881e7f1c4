#include "net6.h"

#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "files.h"
#include "net.h"

#define SETTINGS "/proc/sys/net/ipv6/conf/" NET_INTERFACE "/"

enum { PREFIX_LENGTH = 48, ADDRESS_LENGTH = 128, PREFIX_BYTES = PREFIX_LENGTH / 8, PATIENCE_S = 1 };

/* netlink(7), rtnetlink(7); musl has no kernel headers of its own. */
enum {
    NETLINK_ROUTES = 0,
    ANSWER = 2,
    NEW_NEIGHBOUR = 28,
    FLAG_REQUEST = 0x001,
    FLAG_ACK = 0x004,
    FLAG_REPLACE = 0x100,
    FLAG_CREATE = 0x400,
    STATE_PERMANENT = 0x80,
    NEIGHBOUR_ADDRESS = 1,
    NEIGHBOUR_MAC = 2,
};

struct netlink_header {
    uint32_t length;
    uint16_t type, flags;
    uint32_t sequence, port;
};

struct attribute {
    uint16_t length, type;
};

struct neighbour_request {
    struct netlink_header header;
    uint8_t family, padding_1;
    uint16_t padding_2;
    int32_t interface;
    uint16_t state;
    uint8_t flags, type;
    struct attribute address_head;
    uint8_t address[16];
    struct attribute mac_head;
    uint8_t mac[6], padding_3[2];
};

struct netlink_answer {
    struct netlink_header header;
    int32_t error;
};

struct address_request {
    struct in6_addr address;
    uint32_t prefix_length;
    int interface;
};

static const struct in6_addr gateway = {.s6_addr = {0xfe, 0x80, [15] = 1}};

void net6_prepare(void)
{
    write_setting(SETTINGS "addr_gen_mode", "1");
    write_setting(SETTINGS "accept_ra", "0");
    write_setting(SETTINGS "accept_redirects", "0");
    write_setting(SETTINGS "dad_transmits", "0");
    write_setting(SETTINGS "disable_ipv6", "0");
}

static bool acknowledged(int link)
{
    struct netlink_answer answer = {0};
    struct timeval patience = {.tv_sec = PATIENCE_S};
    setsockopt(link, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ssize_t length = recv(link, &answer, sizeof answer, 0);
    if (length < 0)
        return false;
    if ((size_t)length < sizeof answer || answer.header.type != ANSWER) {
        errno = EPROTO;
        return false;
    }
    errno = -answer.error;
    return !answer.error;
}

static bool know_gateway(int interface, const uint8_t *mac)
{
    struct neighbour_request request = {
        .header = {.length = sizeof request,
                   .type = NEW_NEIGHBOUR,
                   .flags = FLAG_REQUEST | FLAG_ACK | FLAG_CREATE | FLAG_REPLACE},
        .family = AF_INET6,
        .interface = interface,
        .state = STATE_PERMANENT,
        .address_head = {sizeof request.address_head + sizeof request.address, NEIGHBOUR_ADDRESS},
        .mac_head = {sizeof request.mac_head + sizeof request.mac, NEIGHBOUR_MAC},
    };
    memcpy(request.address, &gateway, sizeof request.address);
    memcpy(request.mac, mac, sizeof request.mac);
    int link = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTES);
    if (link < 0)
        return false;
    bool known = send(link, &request, sizeof request, 0) == (ssize_t)sizeof request && acknowledged(link);
    int error = errno;
    close(link);
    errno = error;
    return known;
}

static bool add_route(int control, int interface, const struct in6_addr *target, uint16_t length, bool by_gateway)
{
    struct in6_rtmsg route = {
        .rtmsg_dst = *target,
        .rtmsg_dst_len = length,
        .rtmsg_metric = 1,
        .rtmsg_flags = RTF_UP | (by_gateway ? RTF_GATEWAY : RTF_HOST),
        .rtmsg_ifindex = interface,
    };
    if (by_gateway)
        route.rtmsg_gateway = gateway;
    return ioctl(control, SIOCADDRT, &route) == 0;
}

static bool configure(int control, int interface, const uint8_t *ipv6)
{
    struct address_request own = {.prefix_length = ADDRESS_LENGTH, .interface = interface};
    struct in6_addr prefix = {0};
    memcpy(&own.address, ipv6, sizeof own.address);
    memcpy(&prefix, ipv6, PREFIX_BYTES);
    return ioctl(control, SIOCSIFADDR, &own) == 0 && add_route(control, interface, &gateway, ADDRESS_LENGTH, false) &&
           add_route(control, interface, &prefix, PREFIX_LENGTH, true);
}

bool net6_configure(const uint8_t *ipv6, const uint8_t *gateway_mac)
{
    int interface = (int)if_nametoindex(NET_INTERFACE);
    int control = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0)
        return false;
    bool configured = configure(control, interface, ipv6) && know_gateway(interface, gateway_mac);
    int error = errno;
    close(control);
    errno = error;
    return configured;
}
