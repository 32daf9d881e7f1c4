/* eth0 as a /32 with an on-link gateway: the guest can send to nobody but the gateway. */
#ifndef SWG_NET_H
#define SWG_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "failure.h"

/* The one interface. */
#define NET_INTERFACE "eth0"

void net_loopback_up(void);

/*
 * Its place: eth0 goes down, which drops routes and neighbours of an older one, and comes up anew. `mac` may be NULL,
 * addresses are in network order. Fails with `bad-network`.
 */
bool net_configure(const uint8_t *mac, uint32_t ipv4, uint32_t gateway, struct failure *failure);

#endif
