#include "failure.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

bool fail(struct failure *failure, const char *code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    snprintf(failure->code, sizeof failure->code, "%s", code);
    vsnprintf(failure->message, sizeof failure->message, format, arguments);
    va_end(arguments);
    return false;
}

void say(const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length > 0)
        dprintf(STDERR_FILENO, "init: %s\n", line);
}
