/* Text and a clock for the example: those of a board where SUBBYTE_BOARD is defined, stdio anywhere else. */
#ifndef SUBBYTE_CONSOLE_H
#define SUBBYTE_CONSOLE_H

#include <stdint.h>

#ifdef SUBBYTE_BOARD

#include "board.h" /* console_text, console_start, console_ticks */

#else

#include <stdio.h>
static inline void console_text(const char *text) { fputs(text, stdout); }
static inline void console_start(void) {}
static inline uint32_t console_ticks(void) { return 0; }

#endif

static inline void console_number(uint32_t value) {
  char digits[11];
  int i = 10;
  digits[10] = '\0';
  do {
    digits[--i] = (char)('0' + value % 10u);
    value /= 10u;
  } while (value);
  console_text(digits + i);
}

#endif
