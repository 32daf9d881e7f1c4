/* The programs at every VM's tap: what comes from the VM is its own or is dropped, and all is counted.
 *
 * Theory. One pair of programs serves all taps of an installation; each frame's interface is the key to whom the tap was given
 * (`identities`). An interface that is not there may send nothing. What passes goes on to the next program or filter of the
 * interface, so that limits (a tc filter after us) and the bridge see it as if we were not there.
 *
 * A frame that enters must be IPv4, IPv6 or ARP with the VM's own MAC and address. Of IPv6 no multicast, and nothing of
 * neighbour discovery, which trusts whoever speaks: host and guest know each other's MAC, so it could only be about others. It
 * is looked for behind extension headers too, since a host reads it there (RFC 7113); a frame whose chain of headers is too
 * long, or not whole where it may not be cut, is dropped.
 *
 * To the VM goes no frame for many: a bridge floods those where the host itself is the sender.
 *
 * Traps: by the time we see it, the kernel has taken an outer VLAN tag out of the frame. A frame may lie in pieces, the first
 * as short as the VM likes (offloads), so bytes are copied out and never read in place. Fields are copied in the order of the
 * wire and compared as such.
 *
 * Sources: bpf(2); RFC 826, RFC 4861, RFC 7112, RFC 7113, RFC 8200.
 */
#include "bpf.h"
#include "tap.h"

#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#define PASS TC_ACT_UNSPEC
#define DROP TC_ACT_SHOT
#define MOST_EXTENSIONS 6
#define ACCEPTED (-1)

#define INTERFACES 8192

struct map identities_1 SECTION("maps") = {
    BPF_MAP_TYPE_HASH, sizeof(__u32), sizeof(struct identity), INTERFACES, BPF_F_NO_PREALLOC,
};
struct map traffic_1 SECTION("maps") = {
    BPF_MAP_TYPE_PERCPU_HASH, sizeof(__u32), sizeof(struct traffic), INTERFACES, BPF_F_NO_PREALLOC,
};

struct ethernet {
    __u8 to[6];
    __u8 from[6];
    __u16 protocol;
};

struct arp {
    __u16 hardware;
    __u16 protocol;
    __u8 hardware_bytes;
    __u8 protocol_bytes;
    __u16 operation;
    __u8 sender_mac[6];
    __u16 sender_ipv4[2];
    __u8 target[10];
};

struct ipv4 {
    __u8 version;
    __u8 unused[11];
    __u32 source;
    __u32 destination;
};

struct ipv6 {
    __u8 version;
    __u8 unused[5];
    __u8 next;
    __u8 hops;
    __u32 source[4];
    __u32 destination[4];
};

/* How each extension header begins, also a fragment's, whose length is fixed. */
struct extension {
    __u8 next;
    __u8 length;
    __u16 fragment;
};

/* What may follow a header of IPv6. */
enum { HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, AUTHENTICATION = 51, ICMPV6 = 58, DESTINATION = 60, MOBILITY = 135 };

/* The first and the last of ICMPv6's neighbour discovery, with routers' messages between them. */
enum { ROUTER_SOLICITATION = 133, REDIRECT = 137 };

INLINE int same_mac(const __u8 *one, const __u8 *other)
{
    return one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3] && one[4] == other[4] &&
           one[5] == other[5];
}

INLINE int same_ipv6(const __u32 *one, const __u32 *other)
{
    return one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3];
}

INLINE int check_arp(struct __sk_buff *frame, const struct identity *own)
{
    struct arp arp;
    if (load_bytes(frame, sizeof(struct ethernet), &arp, sizeof(arp)))
        return SHORT;
    if (arp.hardware != NET16(1) || arp.protocol != NET16(ETH_P_IP) || arp.hardware_bytes != 6 || arp.protocol_bytes != 4)
        return ARP;
    if (arp.operation != NET16(1) && arp.operation != NET16(2))
        return ARP;
    if (!same_mac(arp.sender_mac, own->mac))
        return ARP;
    return (arp.sender_ipv4[0] | (__u32)arp.sender_ipv4[1] << 16) == own->ipv4 ? ACCEPTED : ARP;
}

INLINE int check_ipv4(struct __sk_buff *frame, const struct identity *own)
{
    struct ipv4 header;
    if (load_bytes(frame, sizeof(struct ethernet), &header, sizeof(header)))
        return SHORT;
    if (header.version >> 4 != 4)
        return PROTOCOL;
    return header.source == own->ipv4 ? ACCEPTED : SOURCE_IPV4;
}

/* ICMPv6 at an offset. */
INLINE int check_icmpv6(struct __sk_buff *frame, __u32 offset)
{
    __u8 type;
    if (load_bytes(frame, offset, &type, sizeof(type)))
        return EXTENSIONS;
    return type >= ROUTER_SOLICITATION && type <= REDIRECT ? NEIGHBOUR : ACCEPTED;
}

INLINE int check_ipv6(struct __sk_buff *frame, const struct identity *own)
{
    struct ipv6 header;
    __u32 offset = sizeof(struct ethernet);
    if (!own->has_ipv6)
        return PROTOCOL;
    if (load_bytes(frame, offset, &header, sizeof(header)))
        return SHORT;
    if (header.version >> 4 != 6)
        return PROTOCOL;
    if (!same_ipv6(header.source, own->ipv6))
        return SOURCE_IPV6;
    if ((header.destination[0] & 0xff) == 0xff)
        return MULTICAST;
    offset += sizeof(header);
    __u8 next = header.next;
    for (int count = 0; count <= MOST_EXTENSIONS; count++) {
        struct extension extension;
        if (next == ICMPV6)
            return check_icmpv6(frame, offset);
        if (next != HOP_BY_HOP && next != ROUTING && next != DESTINATION && next != MOBILITY &&
            next != AUTHENTICATION && next != FRAGMENT)
            return ACCEPTED;
        if (load_bytes(frame, offset, &extension, sizeof(extension)))
            return EXTENSIONS;
        if (next == FRAGMENT) {
            if (extension.fragment & NET16(0xfff8))
                return ACCEPTED; /* not the first: what it belongs to was looked at there */
            offset += 8;
        } else if (next == AUTHENTICATION) {
            offset += (extension.length + 2u) * 4;
        } else {
            offset += (extension.length + 1u) * 8;
        }
        next = extension.next;
    }
    return EXTENSIONS;
}

INLINE int check(struct __sk_buff *frame, const struct identity *own)
{
    struct ethernet header;
    if (frame->vlan_present)
        return VLAN;
    if (load_bytes(frame, 0, &header, sizeof(header)))
        return SHORT;
    if (!same_mac(header.from, own->mac))
        return SOURCE_MAC;
    switch (header.protocol) {
    case NET16(ETH_P_IP):
        return check_ipv4(frame, own);
    case NET16(ETH_P_IPV6):
        return check_ipv6(frame, own);
    case NET16(ETH_P_ARP):
        return check_arp(frame, own);
    case NET16(ETH_P_8021Q):
    case NET16(ETH_P_8021AD):
        return VLAN;
    default:
        return PROTOCOL;
    }
}

INLINE __u64 packets_of(const struct __sk_buff *frame)
{
    return frame->gso_segs ? frame->gso_segs : 1;
}

PROGRAM("from_vm") int from_vm(struct __sk_buff *frame)
{
    __u32 interface = frame->ifindex;
    struct traffic *traffic = map_lookup(&traffic_1, &interface);
    const struct identity *own = map_lookup(&identities_1, &interface);
    int verdict = own ? check(frame, own) : UNADMITTED;
    if (verdict != ACCEPTED) {
        if (traffic && verdict >= 0 && verdict < REASONS)
            traffic->dropped[verdict]++;
        return DROP;
    }
    if (traffic) {
        traffic->transmit_packets += packets_of(frame);
        traffic->transmit_bytes += frame->len;
    }
    return PASS;
}

PROGRAM("to_vm") int to_vm(struct __sk_buff *frame)
{
    __u32 interface = frame->ifindex;
    struct traffic *traffic = map_lookup(&traffic_1, &interface);
    __u8 first;
    if (load_bytes(frame, 0, &first, sizeof(first)) || first & 1) {
        if (traffic)
            traffic->dropped[FLOODED]++;
        return DROP;
    }
    if (traffic) {
        traffic->receive_packets += packets_of(frame);
        traffic->receive_bytes += frame->len;
    }
    return PASS;
}

char terms[] SECTION("license") = "Apache-2.0";
