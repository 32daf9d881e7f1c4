/*
 * A socket that the host connects to: the channel where the machine has a vsock and no virtio-serial port.
 * Source: vsock(7); VIRTIO 1.2, 5.10.
 */
#ifndef SWG_VSOCK_H
#define SWG_VSOCK_H

enum { VSOCK_PORT = 1024 }; /* as the host's side has it; below are only those of root, and no process runs yet */

/* Listen on a port of the guest's vsock; -1 with errno where that cannot be. */
int vsock_listen(unsigned port);

/*
 * The next connection that waits, not blocking; -1 where none does. Of a vsock only the host's: a process of the guest
 * could load a transport of its own and connect as well.
 */
int vsock_accept(int listener);

#endif
