/*
 * The private network: a /128 of IPv6, and a way to its /48 by the host, which is fe80::1 to every guest. Host and guest
 * are told each other's MAC, so nothing is asked and nobody waits: no neighbour discovery, no router advertisement, no
 * duplicate address detection.
 */
#ifndef SWG_NET6_H
#define SWG_NET6_H

#include <stdbool.h>
#include <stdint.h>

/* Before the interface comes up: it shall take no address of its own and ask for none. */
void net6_prepare(void);

/* When it is up; what it had before went when it was down. False with errno, as on a kernel without IPv6. */
bool net6_configure(const uint8_t *ipv6, const uint8_t *gateway_mac);

#endif
