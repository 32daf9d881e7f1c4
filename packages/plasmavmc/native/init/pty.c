#include "pty.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

void pty_resize(int master, uint16_t rows, uint16_t columns)
{
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    ioctl(master, TIOCSWINSZ, &size);
}

static int open_slave(int master)
{
    int locked = 0;
    unsigned number;
    char path[32];
    if (ioctl(master, TIOCSPTLCK, &locked) < 0 || ioctl(master, TIOCGPTN, &number) < 0)
        return -1;
    snprintf(path, sizeof path, "/dev/pts/%u", number);
    return open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
}

bool pty_open(int *master, int *slave, uint16_t rows, uint16_t columns)
{
    *master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (*master < 0)
        return false;
    *slave = open_slave(*master);
    if (*slave < 0) {
        int error = errno;
        close(*master);
        errno = error;
        return false;
    }
    pty_resize(*master, rows, columns);
    return true;
}
