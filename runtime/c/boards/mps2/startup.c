/* Start-up for an Arm Cortex-M4F board without libc's: vector table, .data and .bss, floating point on, main, exit. */
#include <stdint.h>

#include "console.h"

extern uint32_t image_data_load[], image_data_start[], image_data_end[], image_bss_start[], image_bss_end[], image_stack_top[];

int main(void);
void reset_handler(void);

static void leave(int status) {
  /* SYS_EXIT: 0x20026 is a normal end, 0x20023 a run-time error. */
  (void)console_call(0x18, (const void *)(uintptr_t)(status == 0 ? 0x20026 : 0x20023));
  for (;;) continue;
}

static void fault_handler(void) {
  console_text("error: processor fault\n");
  leave(1);
}

void reset_handler(void) {
  const uint32_t *from = image_data_load;
  uint32_t *to;
  *(volatile uint32_t *)0xe000ed88u |= 0xfu << 20; /* CPACR: full access to the floating-point unit */
  __asm__ volatile("dsb\n isb" ::: "memory");
  for (to = image_data_start; to < image_data_end; ++to) *to = *from++;
  for (to = image_bss_start; to < image_bss_end; ++to) *to = 0;
  leave(main());
}

typedef void (*handler)(void);

__attribute__((section(".vectors"), used)) static const union {
  uint32_t *stack;
  handler entry;
} vectors[16] = {
    {.stack = image_stack_top}, {.entry = reset_handler}, {.entry = fault_handler}, {.entry = fault_handler},
    {.entry = fault_handler},   {.entry = fault_handler}, {.entry = fault_handler},
};
