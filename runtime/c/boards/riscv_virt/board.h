/* Text and a clock on qemu's RISC-V board `virt`: its serial port, and the count of retired instructions. */
#ifndef SUBBYTE_BOARD_H
#define SUBBYTE_BOARD_H

#include <stdint.h>

#define CONSOLE_PORT ((volatile uint8_t *)0x10000000u) /* of a 16550; the emulator takes a byte at any time */
static inline void console_text(const char *text) {
  while (*text) *CONSOLE_PORT = (uint8_t)*text++;
}

static inline void console_start(void) {}

/* rdinstret, as a number: assemblers for RV32I without its extensions do not know it. Exact under `qemu -icount shift=0`. */
static inline uint32_t console_ticks(void) {
  uint32_t instructions;
  __asm__ volatile(".insn i 0x73, 2, %0, x0, -1022" : "=r"(instructions) : : "memory");
  return instructions;
}

#endif
