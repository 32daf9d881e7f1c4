/* What the programs share with the root helper (host/helper/ebpf_taps.py): layouts of keys and values, reasons. */
#pragma once

#include <linux/types.h>

/* Who may send by an interface. Addresses in the order of the wire. */
struct identity {
    __u8 mac[6];
    __u8 has_ipv6;
    __u8 unused;
    __u32 ipv4;
    __u32 ipv6[4];
};

/* Why a frame was dropped: the place of its count. Names: `REASONS` of the helper. New ones go to the end. */
enum reason {
    UNADMITTED,
    SHORT,
    VLAN,
    SOURCE_MAC,
    PROTOCOL,
    ARP,
    SOURCE_IPV4,
    SOURCE_IPV6,
    MULTICAST,
    EXTENSIONS,
    NEIGHBOUR,
    FLOODED,
    REASONS,
};

/* What has passed an interface, and what has not. To transmit and to receive is the VM's part. */
struct traffic {
    __u64 transmit_packets;
    __u64 transmit_bytes;
    __u64 receive_packets;
    __u64 receive_bytes;
    __u64 dropped[REASONS];
};
