/* Reads the members of the bundle that the bench program belongs to: from the folder into which it was unpacked, or from
 * the .subbyte file (docs/bundle.md: a zip of stored members). Each must have the size and the SHA-256 that the compiler
 * wrote into the program: a file that is cut short, damaged or of another model is refused.
 */
#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

enum { END_BYTES = 22, ENTRY_BYTES = 46, LOCAL_BYTES = 30, MOST_MEMBERS = 256, MOST_DIRECTORY = 1 << 20 };
#define AGAIN "Unpack the bundle of this program again (unzip -o t.subbyte -d FOLDER), or compile the model again."

/* ---- SHA-256 (FIPS 180-4) ---- */

static uint32_t rotated(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

static void hash_block(uint32_t state[8], const unsigned char *block) {
  static const uint32_t K[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
      0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
      0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
      0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
      0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
      0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t w[64], s[8];
  int i;
  for (i = 0; i < 16; ++i)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
  for (; i < 64; ++i)
    w[i] = w[i - 16] + w[i - 7] + (rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3) +
           (rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10);
  memcpy(s, state, sizeof s);
  for (i = 0; i < 64; ++i) {
    const uint32_t chosen = (s[4] & s[5]) ^ (~s[4] & s[6]), majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
    const uint32_t first = s[7] + (rotated(s[4], 6) ^ rotated(s[4], 11) ^ rotated(s[4], 25)) + chosen + K[i] + w[i];
    const uint32_t second = (rotated(s[0], 2) ^ rotated(s[0], 13) ^ rotated(s[0], 22)) + majority;
    memmove(s + 1, s, 7 * sizeof *s);
    s[4] += first;
    s[0] = first + second;
  }
  for (i = 0; i < 8; ++i) state[i] += s[i];
}

void bench_sha256(const void *data, size_t bytes, char digits[65]) {
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const unsigned char *at = (const unsigned char *)data;
  const uint64_t bits = 8 * (uint64_t)bytes;
  unsigned char last[128] = {0};
  size_t rest = bytes, padded;
  int i;
  for (; rest >= 64; rest -= 64, at += 64) hash_block(state, at);
  if (rest) memcpy(last, at, rest);
  last[rest] = 0x80;
  padded = rest < 56 ? 64 : 128;
  for (i = 0; i < 8; ++i) last[padded - 1 - (size_t)i] = (unsigned char)(bits >> 8 * i);
  hash_block(state, last);
  if (padded == 128) hash_block(state, last + 64);
  for (i = 0; i < 8; ++i) snprintf(digits + 8 * i, 9, "%08x", (unsigned)state[i]);
}

/* ---- files ---- */

/* Ends the program: "WHAT: PATH[/NAME]: REASON". */
static void refuse(const char *what, const bench_bundle *bundle, const char *name, const char *reason) {
  char text[SUBBYTE_PATH + 1024];
  snprintf(text, sizeof text, "%.*s%s%s: %s", SUBBYTE_PATH, bundle->path, name ? "/" : "", name ? name : "", reason);
  bench_fail(what, text);
}

/* `bytes` from `at` on; the whole of them, or the program ends. */
static void read_at(const bench_bundle *bundle, int file, const char *name, void *to, uint64_t bytes, uint64_t at) {
  char *next = (char *)to;
  while (bytes > 0) {
    const ssize_t got = pread(file, next, bytes < (1u << 30) ? (size_t)bytes : (size_t)1 << 30, (off_t)at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refuse("cannot read", bundle, name, strerror(errno));
    if (got == 0) refuse("cannot read", bundle, name, "the file ends too early. " AGAIN);
    next += got;
    at += (uint64_t)got;
    bytes -= (uint64_t)got;
  }
}

static uint64_t number(const unsigned char *at, int bytes) {
  uint64_t value = 0;
  while (bytes-- > 0) value = value << 8 | at[bytes];
  return value;
}

static void no_bundle(const bench_bundle *bundle, const char *reason) {
  char text[256];
  snprintf(text, sizeof text, "%s. Give the .subbyte file, or the folder into which it was unpacked", reason);
  refuse("not a bundle", bundle, NULL, text);
}

/* Reads the directory of the zip file. */
static void open_zip(bench_bundle *bundle) {
  unsigned char end[END_BYTES];
  if (bundle->bytes < END_BYTES) no_bundle(bundle, "the file is too small for a zip file");
  read_at(bundle, bundle->file, NULL, end, END_BYTES, bundle->bytes - END_BYTES);
  if (number(end, 4) != 0x06054b50) no_bundle(bundle, "it does not end as a zip file does: another file, or cut short");
  bundle->entries = (int)number(end + 10, 2);
  bundle->directory_bytes = number(end + 12, 4);
  bundle->directory_at = number(end + 16, 4);
  if (bundle->entries > MOST_MEMBERS || bundle->directory_bytes > MOST_DIRECTORY || number(end + 20, 2) != 0 ||
      bundle->directory_at + bundle->directory_bytes + END_BYTES != bundle->bytes)
    no_bundle(bundle, "the zip file is not as `subbyte compile` writes it: zipped again, or damaged");
  bundle->directory = (unsigned char *)bench_allocate(bundle->directory_bytes);
  read_at(bundle, bundle->file, NULL, bundle->directory, bundle->directory_bytes, bundle->directory_at);
}

void bench_open(bench_bundle *bundle, const char *path) {
  struct stat found;
  memset(bundle, 0, sizeof *bundle);
  bundle->file = -1;
  if (snprintf(bundle->path, sizeof bundle->path, "%s", path) >= (int)sizeof bundle->path)
    bench_fail("the path is too long", path);
  if (stat(path, &found) != 0) refuse("cannot open", bundle, NULL, strerror(errno));
  if (S_ISDIR(found.st_mode)) return;
  if (!S_ISREG(found.st_mode)) no_bundle(bundle, "it is neither a file nor a folder");
  bundle->file = open(path, O_RDONLY);
  if (bundle->file < 0) refuse("cannot open", bundle, NULL, strerror(errno));
  bundle->bytes = (uint64_t)found.st_size;
  open_zip(bundle);
}

/* Where the data of a stored member begins, and its size. */
static uint64_t place_in_zip(const bench_bundle *bundle, const char *name, uint64_t *bytes) {
  const unsigned char *entry = bundle->directory, *end = entry + bundle->directory_bytes;
  unsigned char local[LOCAL_BYTES];
  uint64_t at, data;
  int i;
  for (i = 0; i < bundle->entries; ++i) {
    size_t named, whole;
    if (end - entry < ENTRY_BYTES || number(entry, 4) != 0x02014b50) break;
    named = (size_t)number(entry + 28, 2);
    whole = ENTRY_BYTES + named + (size_t)number(entry + 30, 2) + (size_t)number(entry + 32, 2);
    if ((size_t)(end - entry) < whole) break;
    if (named == strlen(name) && memcmp(entry + ENTRY_BYTES, name, named) == 0) {
      *bytes = number(entry + 24, 4);
      at = number(entry + 42, 4);
      if (number(entry + 10, 2) != 0 || number(entry + 20, 4) != *bytes || at + LOCAL_BYTES > bundle->directory_at) break;
      read_at(bundle, bundle->file, NULL, local, LOCAL_BYTES, at);
      data = at + LOCAL_BYTES + number(local + 26, 2) + number(local + 28, 2);
      if (number(local, 4) != 0x04034b50 || data + *bytes > bundle->directory_at) break;
      return data;
    }
    entry += whole;
  }
  refuse("cannot read", bundle, name,
         i < bundle->entries ? "the zip file is not as `subbyte compile` writes it: zipped again, or damaged. " AGAIN
                             : "there is no such member: a bundle of another model, or one for C sources. " AGAIN);
  return 0;
}

void *bench_member(const bench_bundle *bundle, const subbyte_bench_member *member) {
  char name[SUBBYTE_PATH + 64], digits[65], text[256];
  uint64_t at = 0, bytes = 0;
  void *data = NULL;
  int file = bundle->file;
  if (file < 0) {
    struct stat found;
    snprintf(name, sizeof name, "%s/%s", bundle->path, member->name);
    file = stat(name, &found) != 0 ? -1 : S_ISREG(found.st_mode) ? open(name, O_RDONLY) : (errno = EINVAL, -1);
    if (file < 0) {
      snprintf(text, sizeof text,
               "%s. This program reads the bundle that it is a member of: unpack all of it here (unzip t.subbyte -d "
               "FOLDER), or give its path (bench t.subbyte)",
               strerror(errno));
      refuse("cannot open", bundle, member->name, text);
    }
    bytes = (uint64_t)found.st_size;
  } else {
    at = place_in_zip(bundle, member->name, &bytes);
  }
  if (bytes != member->bytes) {
    snprintf(text, sizeof text, "it has %llu bytes, expected %llu: cut short, or of another model. " AGAIN,
             (unsigned long long)bytes, (unsigned long long)member->bytes);
    refuse("wrong size", bundle, member->name, text);
  }
  /* The data, after the member's header, is aligned, whatever the header's size. */
  if (posix_memalign(&data, SUBBYTE_ALIGNMENT, member->bytes + SUBBYTE_ALIGNMENT) != 0) bench_fail("out of memory", member->name);
  data = (char *)data + (SUBBYTE_ALIGNMENT - member->header % SUBBYTE_ALIGNMENT) % SUBBYTE_ALIGNMENT;
  read_at(bundle, file, member->name, data, member->bytes, at);
  if (bundle->file < 0) (void)close(file);
  bench_sha256(data, member->bytes, digits);
  if (strcmp(digits, member->sha256) != 0)
    refuse("wrong SHA-256", bundle, member->name, "damaged, or of another model. " AGAIN);
  return (char *)data + member->header;
}
