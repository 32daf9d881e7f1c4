/* Disks and interfaces of a guest that has heard no configuration yet, let go of and taken again. */
#ifndef SWG_DEVICES_H
#define SWG_DEVICES_H

#include <stdbool.h>

/*
 * Take every disk and interface from its driver, or give back those that were taken, in the same order. What the kernel
 * knew of them (sizes, addresses, cached blocks) is gone in between, so that a copy of this guest may find others in
 * their places. False: one could not be taken, and none is; or one could not be given back.
 */
bool devices_hold(bool on);

#endif
