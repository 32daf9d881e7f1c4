/* A pseudo-terminal for a command (pty(7)). */
#ifndef SWG_PTY_H
#define SWG_PTY_H

#include <stdbool.h>
#include <stdint.h>

/* Open a pair; the master does not block. False with errno. */
bool pty_open(int *master, int *slave, uint16_t rows, uint16_t columns);

void pty_resize(int master, uint16_t rows, uint16_t columns);

#endif
