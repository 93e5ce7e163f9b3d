/* Texts and numbers in files of /proc and /sys. */
#include "system_files.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* All of a file, without white space at its ends; NULL when it cannot be read or is empty. */
char *subbyte_text_of(const char *root, const char *path) {
  char name[3 * SUBBYTE_PATH + 64], *text = NULL, *grown, *begin;
  size_t size = 0, room = 0, got = 1;
  FILE *file;
  if (snprintf(name, sizeof name, "%s%s", root, path) >= (int)sizeof name) return NULL;
  file = fopen(name, "r");
  if (file == NULL) return NULL;
  while (got > 0) {
    if (size + 1 >= room) {
      room = room ? 2 * room : 4096;
      grown = (char *)realloc(text, room);
      if (grown == NULL) break;
      text = grown;
    }
    got = fread(text + size, 1, room - size - 1, file);
    size += got;
  }
  fclose(file);
  if (text == NULL) return NULL;
  while (size > 0 && isspace((unsigned char)text[size - 1])) --size;
  text[size] = '\0';
  for (begin = text; isspace((unsigned char)*begin); ++begin) continue;
  memmove(text, begin, strlen(begin) + 1);
  if (*text) return text;
  free(text);
  return NULL;
}

double subbyte_number_in(const char *text, int fraction) {
  const char *digits = text, *rest;
  if (text == NULL) return SUBBYTE_UNKNOWN;
  digits += *digits == '-';
  rest = digits + strspn(digits, "0123456789");
  if (rest == digits || rest - digits > 20) return SUBBYTE_UNKNOWN;
  if (fraction && *rest == '.') {
    digits = rest + 1;
    rest = digits + strspn(digits, "0123456789");
    if (rest == digits || rest - digits > 20) return SUBBYTE_UNKNOWN;
  }
  return *rest == '\0' ? strtod(text, NULL) : SUBBYTE_UNKNOWN;
}
