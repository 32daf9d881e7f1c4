/* Bring the guest into the shape that its configuration asks for, before anything of the user's runs. */
#ifndef SWG_PREPARE_H
#define SWG_PREPARE_H

#include <stdbool.h>

#include "config.h"
#include "failure.h"

bool prepare_guest(const struct config *config, struct failure *failure);

#endif
