/* Writes JSON into memory: keys, values, commas and indentation. */
#include "json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ON_LINES = 3, PIECE = 64 }; /* values nested deeper than ON_LINES share their parent's line */

static void put(subbyte_json *j, const char *text, size_t length) {
  if (j->failed) return;
  if (j->length + length >= j->room) {
    const size_t room = 2 * j->room + length + 1024;
    char *text_now = (char *)realloc(j->text, room);
    j->failed = text_now == NULL;
    if (j->failed) return;
    j->text = text_now;
    j->room = room;
  }
  memcpy(j->text + j->length, text, length);
  j->length += length;
  j->text[j->length] = '\0';
}

/* At most PIECE - 1 characters. */
static void print(subbyte_json *j, const char *format, ...) {
  char piece[PIECE];
  va_list values;
  int length;
  va_start(values, format);
  length = vsnprintf(piece, sizeof piece, format, values);
  va_end(values);
  put(j, piece, (size_t)length);
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

static void put_text(subbyte_json *j, const char *text) {
  const unsigned char *c = (const unsigned char *)text;
  put(j, "\"", 1);
  while (*c) {
    const int length = utf8(c);
    if (length == 0)
      put(j, "\\ufffd", 6);
    else if (*c == '"' || *c == '\\')
      print(j, "\\%c", *c);
    else if (*c < 32)
      print(j, "\\u%04x", (unsigned)*c);
    else
      put(j, (const char *)c, (size_t)length);
    c += length ? length : 1;
  }
  put(j, "\"", 1);
}

static void begin(subbyte_json *j, const char *key) {
  if (j->depth > 0) {
    if (j->members[j->depth]++) put(j, ",", 1);
    if (j->depth < ON_LINES)
      print(j, "\n%*s", j->depth, "");
    else if (j->members[j->depth] > 1)
      put(j, " ", 1);
  }
  if (key != NULL) {
    put_text(j, key);
    put(j, ": ", 2);
  }
}

void subbyte_json_open(subbyte_json *j, const char *key, char bracket) {
  begin(j, key);
  put(j, &bracket, 1);
  if (j->depth + 1 == SUBBYTE_JSON_DEEPEST)
    j->failed = 1;
  else
    j->members[++j->depth] = 0;
}

void subbyte_json_close(subbyte_json *j, char bracket) {
  if (j->depth < ON_LINES && j->members[j->depth]) print(j, "\n%*s", j->depth - 1, "");
  put(j, &bracket, 1);
  if (j->depth > 0 && --j->depth == 0) put(j, "\n", 1);
}

void subbyte_json_text(subbyte_json *j, const char *key, const char *value) {
  begin(j, key);
  if (value == NULL)
    put(j, "null", 4);
  else
    put_text(j, value);
}

void subbyte_json_real(subbyte_json *j, const char *key, double value) {
  char digits[40];
  int precision = 15;
  if (!(fabs(value) < HUGE_VAL)) {
    subbyte_json_null(j, key);
    return;
  }
  do snprintf(digits, sizeof digits, "%.*g", precision, value);
  while (strtod(digits, NULL) != value && ++precision <= 17);
  if (strpbrk(digits, ".e") == NULL) strcat(digits, ".0"); /* a float stays one */
  subbyte_json_raw(j, key, digits);
}

void subbyte_json_whole(subbyte_json *j, const char *key, long long value) {
  begin(j, key);
  print(j, "%lld", value);
}

void subbyte_json_flag(subbyte_json *j, const char *key, int value) {
  subbyte_json_raw(j, key, value < 0 ? "null" : value ? "true" : "false");
}

void subbyte_json_null(subbyte_json *j, const char *key) { subbyte_json_raw(j, key, "null"); }

void subbyte_json_raw(subbyte_json *j, const char *key, const char *json) {
  begin(j, key);
  put(j, json, strlen(json));
}
