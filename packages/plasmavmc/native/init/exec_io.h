/* One command's stdin and output: the part of `exec` that moves bytes. */
#ifndef SWG_EXEC_IO_H
#define SWG_EXEC_IO_H

#include "exec.h"

void exec_watch(struct exec *exec, struct watch *watch, bool may_send);

/* Hear how the start went; write what stdin takes. */
void exec_turn(struct exec *exec);

/* False where the host sent more than it was granted. */
bool exec_take_input(struct exec *exec, const uint8_t *bytes, size_t length);
void exec_end_input(struct exec *exec);

/* Send news, credit and at most one data frame a stream; true if anything was moved. There is room for control. */
bool exec_send(struct exec *exec, struct outbuf *out);

void exec_close_io(struct exec *exec);
void exec_free(struct exec *exec);

#endif
