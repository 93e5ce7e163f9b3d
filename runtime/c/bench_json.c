/* Writes JSON to standard output: keys, values, commas and indentation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { DEEPEST = 16, ON_LINES = 3 }; /* values nested deeper than ON_LINES share their parent's line */

static int depth, members[DEEPEST];

static void put_text(const char *text);

static void begin(const char *key) {
  if (depth > 0) {
    if (members[depth]++) putchar(',');
    if (depth < ON_LINES)
      printf("\n%*s", depth, "");
    else if (members[depth] > 1)
      putchar(' ');
  }
  if (key != NULL) {
    put_text(key);
    fputs(": ", stdout);
  }
}

void bench_json_open(const char *key, char bracket) {
  begin(key);
  putchar(bracket);
  if (++depth == DEEPEST) bench_fail("JSON nested too deep", key);
  members[depth] = 0;
}

void bench_json_close(char bracket) {
  if (depth < ON_LINES && members[depth]) printf("\n%*s", depth - 1, "");
  putchar(bracket);
  if (--depth == 0) putchar('\n');
}

/* Bytes of the UTF-8 character that begins here; 0: it is not one. */
static int utf8(const unsigned char *text) {
  const unsigned char first = *text;
  const int length = first < 0x80 ? 1 : first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3
                     : first >= 0xf0 && first < 0xf5                  ? 4
                                                                      : 0;
  int i;
  for (i = 1; i < length; ++i)
    if ((text[i] & 0xc0) != 0x80) return 0;
  if (length == 3 && ((first == 0xe0 && text[1] < 0xa0) || (first == 0xed && text[1] >= 0xa0))) return 0;
  if (length == 4 && ((first == 0xf0 && text[1] < 0x90) || (first == 0xf4 && text[1] >= 0x90))) return 0;
  return length;
}

static void put_text(const char *text) {
  const unsigned char *c = (const unsigned char *)text;
  putchar('"');
  while (*c) {
    const int length = utf8(c);
    if (length == 0)
      fputs("\\ufffd", stdout);
    else if (*c == '"' || *c == '\\')
      printf("\\%c", *c);
    else if (*c < 32)
      printf("\\u%04x", (unsigned)*c);
    else
      fwrite(c, 1, (size_t)length, stdout);
    c += length ? length : 1;
  }
  putchar('"');
}

void bench_json_text(const char *key, const char *value) {
  begin(key);
  if (value == NULL)
    fputs("null", stdout);
  else
    put_text(value);
}

void bench_json_real(const char *key, double value) {
  char digits[40];
  int precision = 15;
  if (!(fabs(value) < HUGE_VAL)) {
    bench_json_null(key);
    return;
  }
  do snprintf(digits, sizeof digits, "%.*g", precision, value);
  while (strtod(digits, NULL) != value && ++precision <= 17);
  if (strpbrk(digits, ".e") == NULL) strcat(digits, ".0"); /* a float stays one */
  bench_json_raw(key, digits);
}

void bench_json_whole(const char *key, long long value) {
  begin(key);
  printf("%lld", value);
}

void bench_json_flag(const char *key, int value) { bench_json_raw(key, value < 0 ? "null" : value ? "true" : "false"); }

void bench_json_null(const char *key) { bench_json_raw(key, "null"); }

void bench_json_raw(const char *key, const char *json) {
  begin(key);
  fputs(json, stdout);
}
