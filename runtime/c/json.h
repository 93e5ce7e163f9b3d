/* A JSON value, written key by key into memory; `key` is NULL inside of arrays. */
#ifndef SUBBYTE_JSON_H
#define SUBBYTE_JSON_H

#include <stddef.h>

enum { SUBBYTE_JSON_DEEPEST = 16 };

typedef struct {
  char *text; /* with a zero at its end; to be freed. NULL: nothing was written */
  size_t length, room;
  int depth, members[SUBBYTE_JSON_DEEPEST];
  int failed; /* memory ran out, or the value is nested too deep: what follows is not written */
} subbyte_json; /* begins as zeros */

void subbyte_json_open(subbyte_json *j, const char *key, char bracket); /* '{' or '[' */
void subbyte_json_close(subbyte_json *j, char bracket);
void subbyte_json_text(subbyte_json *j, const char *key, const char *value); /* NULL: null. What is not UTF-8 becomes U+FFFD */
void subbyte_json_real(subbyte_json *j, const char *key, double value); /* not finite: null. As many digits as tell it from others */
void subbyte_json_whole(subbyte_json *j, const char *key, long long value);
void subbyte_json_flag(subbyte_json *j, const char *key, int value); /* negative: null */
void subbyte_json_null(subbyte_json *j, const char *key);
void subbyte_json_raw(subbyte_json *j, const char *key, const char *json);

#endif
