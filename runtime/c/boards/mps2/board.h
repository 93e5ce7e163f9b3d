/* Text and a clock on Arm's MPS2 boards: semihosting and a CMSDK timer. */
#ifndef SUBBYTE_BOARD_H
#define SUBBYTE_BOARD_H

#include <stdint.h>

/* Arm semihosting: the debugger or emulator does what register 0 asks for. */
static inline int console_call(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

static inline void console_text(const char *text) { (void)console_call(0x04, text); }

/* Timer 0 of the MPS2 boards counts down at 25 MHz. Under `qemu -icount shift=0` an instruction takes 1 ns: a tick is 40. */
#define CONSOLE_TIMER ((volatile uint32_t *)0x40000000u)
static inline void console_start(void) {
  CONSOLE_TIMER[2] = 0xffffffffu; /* reload */
  CONSOLE_TIMER[1] = 0xffffffffu; /* value */
  CONSOLE_TIMER[0] = 1u;          /* enable */
}
static inline uint32_t console_ticks(void) { return 0xffffffffu - CONSOLE_TIMER[1]; }

#endif
