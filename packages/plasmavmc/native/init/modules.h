/* Kernel modules of the initramfs: /mods/NN-name.ko, loaded in the order of their names. */
#ifndef SWG_MODULES_H
#define SWG_MODULES_H

/* Load all and remove the files: the initramfs is memory. A module that the kernel refuses is told on the console. */
void modules_load(const char *directory);

#endif
