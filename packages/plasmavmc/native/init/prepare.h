/* Bring the guest into the shape that its configuration asks for, before anything of the user's runs. */
#ifndef SWG_PREPARE_H
#define SWG_PREPARE_H

#include <stdbool.h>

#include "config.h"
#include "failure.h"

bool prepare_guest(const struct config *config, struct failure *failure);

/*
 * A guest whose processes are held goes on: clock and entropy always; where the card has them, a new place in the network
 * and new names. False where it could not become who it is to be: then nothing of the user's may run.
 */
bool renew_guest(const struct identity_card *card, struct failure *failure);

#endif
