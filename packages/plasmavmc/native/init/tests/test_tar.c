/* A tar stream as it is written is what is read; and no stream, however broken, does harm. */

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "tar.h"

enum { ROUNDS = 20000, LONG = 3000 };

static struct tar_member written, seen;
static unsigned seed = 2463534242u;

static int new_file(void)
{
    int file = memfd_create("tar", 0);
    CHECK(file >= 0);
    return file;
}

static void fill(char *text, size_t length, char letter)
{
    memset(text, letter, length);
    text[0] = 'x';
    text[1] = '/';
    text[length] = '\0';
}

static void put_sample(int file)
{
    bool short_of;
    int content = new_file();
    CHECK(write(content, "content", 7) == 7 && lseek(content, 0, SEEK_SET) == 0);
    written = (struct tar_member){.kind = TAR_DIRECTORY, .path = "x", .mode = 0750, .mtime = 12};
    CHECK(tar_put(file, &written));
    written = (struct tar_member){.kind = TAR_SYMLINK, .mode = 0777};
    fill(written.path, LONG, 'p');
    fill(written.target, LONG, 't');
    CHECK(tar_put(file, &written));
    written = (struct tar_member){.kind = TAR_FILE, .path = "x/f", .mode = 0644, .size = 9};
    CHECK(tar_put(file, &written) && tar_put_data(file, content, 9, &short_of) && short_of);
    CHECK(tar_put_end(file) && lseek(file, 0, SEEK_SET) == 0);
    close(content);
}

static void test_what_is_written_is_read(void)
{
    char text[16] = {0};
    int file = new_file(), content = new_file();
    put_sample(file);
    CHECK(tar_next(file, &seen) == TAR_MEMBER && seen.kind == TAR_DIRECTORY && !strcmp(seen.path, "x"));
    CHECK(seen.mode == 0750 && seen.mtime == 12);
    CHECK(tar_next(file, &seen) == TAR_MEMBER && seen.kind == TAR_SYMLINK);
    CHECK(strlen(seen.path) == LONG && strlen(seen.target) == LONG && seen.target[LONG - 1] == 't');
    CHECK(tar_next(file, &seen) == TAR_MEMBER && seen.kind == TAR_FILE && seen.size == 9);
    CHECK(tar_take_data(file, seen.size, content));
    CHECK(pread(content, text, sizeof text, 0) == 9 && !memcmp(text, "content\0\0", 9));
    CHECK(tar_next(file, &seen) == TAR_END);
    close(file);
    close(content);
}

static void read_to_end(int file)
{
    for (int members = 0; members < 64; members++)
        if (tar_next(file, &seen) != TAR_MEMBER || seen.size > 1 << 20 || !tar_take_data(file, seen.size, -1))
            return;
}

/* Half of the time the header's checksum is made right again, so that what lies behind it is met. */
static void mend(uint8_t *block)
{
    uint32_t sum = 0;
    memset(block + 148, ' ', 8);
    for (int i = 0; i < TAR_BLOCK; i++)
        sum += block[i];
    snprintf((char *)block + 148, 8, "%06o", (unsigned)sum & 0777777);
}

static void test_broken_streams_do_no_harm(void)
{
    static uint8_t sample[64 * 1024], broken[64 * 1024];
    int file = new_file();
    put_sample(file);
    ssize_t length = read(file, sample, sizeof sample);
    CHECK(length > 0);
    for (int round = 0; round < ROUNDS; round++) {
        memcpy(broken, sample, (size_t)length);
        for (int changes = next_random(&seed) % 8 + 1; changes; changes--)
            broken[next_random(&seed) % length] =
                next_random(&seed) % 3 ? (uint8_t)"0123456789 =\n/x"[next_random(&seed) % 15] : (uint8_t)next_random(&seed);
        if (next_random(&seed) % 2)
            mend(broken + next_random(&seed) % (length / TAR_BLOCK) * TAR_BLOCK);
        size_t cut = next_random(&seed) % 4 ? (size_t)length : (size_t)(next_random(&seed) % length);
        CHECK(ftruncate(file, 0) == 0 && pwrite(file, broken, cut, 0) == (ssize_t)cut && lseek(file, 0, SEEK_SET) == 0);
        read_to_end(file);
    }
    close(file);
}

int main(void)
{
    test_what_is_written_is_read();
    test_broken_streams_do_no_harm();
    return 0;
}
