/* Start-up for qemu's RISC-V board `virt` without libc's: stack, .bss, the handler of traps, main, exit. */
#include <stdint.h>

#include "console.h"

extern uint32_t image_bss_start[], image_bss_end[];

int main(void);
void begin(void);
void trap(void);

static void leave(int status) {
  *(volatile uint32_t *)0x00100000u = status == 0 ? 0x5555u : 0x3333u | 1u << 16; /* ends qemu, with status 0 or 1 */
  for (;;) continue;
}

/* Any trap ends the program: a multiplication on a CPU that has none, for one. This divides nothing, so that it traps not. */
__attribute__((aligned(4), used)) void trap(void) {
  uint32_t cause;
  __asm__ volatile(".insn i 0x73, 2, %0, x0, 0x342" : "=r"(cause)); /* csrr %0, mcause */
  console_text(cause == 2 ? "error: illegal instruction\n" : "error: processor fault\n");
  leave(1);
}

__attribute__((used)) void begin(void) {
  uint32_t *to;
  for (to = image_bss_start; to < image_bss_end; ++to) *to = 0;
  __asm__ volatile(".insn i 0x73, 1, x0, %0, 0x305" : : "r"((uintptr_t)trap)); /* csrw mtvec, %0 */
  leave(main());
}

__asm__(
    ".section .vectors, \"ax\"\n"
    ".globl reset\n"
    "reset:\n"
    "  la sp, image_stack_top\n"
    "  j begin\n"
    ".text\n");
