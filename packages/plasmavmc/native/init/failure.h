/* Why something could not be started: a stable code for programs, a line for people. */
#ifndef SWG_FAILURE_H
#define SWG_FAILURE_H

#include <stdbool.h>

struct failure {
    char code[32];
    char message[400];
};

/* Fill it in and return false, so that `return fail(...)` reads well. */
bool fail(struct failure *failure, const char *code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A line on the serial console, for what happens before or beside the channel. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
