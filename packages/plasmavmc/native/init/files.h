/* Small helpers for the guest's file tree. */
#ifndef SWG_FILES_H
#define SWG_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Like mkdir -p; what exists is left alone. */
void make_directories(const char *path, mode_t mode);

/* The same for the directories above a file. */
void make_parents(const char *path);

/* How a path may be followed (openat2(2)). */
enum { RESOLVE_NO_MAGICLINKS = 0x02, RESOLVE_NO_SYMLINKS = 0x04, RESOLVE_BENEATH = 0x08, RESOLVE_IN_ROOT = 0x10 };

/* A directory, as a place and not to read. -1 with errno. */
int open_place_at(int directory, const char *path, uint64_t resolve);

/* True where the directory is missing or holds nothing. */
bool is_empty(const char *directory);

/* True where there is no file or nothing in it. */
bool is_missing_or_empty(const char *path);

/* Create or replace a file, never through a link in its last part. False with errno. */
bool write_file(const char *path, const void *content, size_t length, mode_t mode);

/* The first line of a small file, such as those of /sys, without its end. False where there is none. */
bool read_line(const char *path, char *into, size_t size);

/* Write to a file that exists, such as those of /proc/sys. False with errno. */
bool write_setting(const char *path, const char *value);

#endif
