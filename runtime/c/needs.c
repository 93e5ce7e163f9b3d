/* What a model needs of the machine: instructions of the CPU, which it has or has not, and what Linux must be asked for.
 *
 * The features of a CPU are rows of runtime/features.py, from which cpu_features.h is written. A name that is not there, or
 * that this CPU cannot be asked about, counts as missing.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for syscall */
#endif

#include "cpu_features.h"
#include "internal.h"

#include <string.h>

#ifdef SUBBYTE_FEATURES
typedef struct {
  char name[16]; /* not a pointer: no relocations, a third of the size */
  uint8_t word;  /* of `has` */
  uint8_t bit;
  uint32_t saved;
} feature;

#define ROW(name, word, bit, saved) {name, word, bit, saved},
static const feature features[] = {SUBBYTE_FEATURES(ROW)};
#undef ROW

/* The words of cpu_features.h, into has[WORDS]. Returns XCR0, registers that the system saves; 0 where there is none. */
static uint32_t ask_cpu(uint32_t *has);

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

enum { OSXSAVE = 1 << 27 }; /* of LEAF_1_ECX */

/* The CPU is asked, not /proc/cpuinfo: an emulator shows its host's. */
static uint32_t ask_cpu(uint32_t *has) {
  unsigned a = 0, b = 0, c = 0, d = 0, saved = 0, leaves;
  if (__get_cpuid(1, &a, &b, &c, &d)) has[LEAF_1_ECX] = c;
  if (has[LEAF_1_ECX] & (uint32_t)OSXSAVE) {
    unsigned high;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(saved), "=d"(high) : "c"(0)); /* xgetbv */
    (void)high;
  }
  if (__get_cpuid_max(0, 0) >= 7) {
    __cpuid_count(7, 0, leaves, b, c, d);
    has[LEAF_7_EBX] = b;
    has[LEAF_7_ECX] = c;
    has[LEAF_7_EDX] = d;
    if (leaves >= 1) {
      __cpuid_count(7, 1, a, b, c, d);
      has[LEAF_7_1_EAX] = a;
    }
  }
  if (__get_cpuid(0x80000001u, &a, &b, &c, &d)) has[LEAF_EXTENDED_ECX] = c;
  return saved;
}
#elif defined(__aarch64__)
#include <sys/auxv.h>

enum { AUX_HWCAP = 16, AUX_HWCAP2 = 26 }; /* AT_HWCAP, AT_HWCAP2 */

static uint32_t ask_cpu(uint32_t *has) {
  has[HWCAP] = (uint32_t)getauxval(AUX_HWCAP);
  has[HWCAP2] = (uint32_t)getauxval(AUX_HWCAP2);
  return 0;
}
#else /* RISC-V */
#include <sys/auxv.h>
#include <unistd.h>

enum { AUX_HWCAP = 16, SYSTEM_CALL_HWPROBE = 258, KEY_IMA_EXT_0 = 4 }; /* __NR_riscv_hwprobe of asm/unistd.h */

/* hwprobe is asked what all cores have in common. Linux before 6.4 has no such call: its features count as missing. */
static uint32_t ask_cpu(uint32_t *has) {
  struct {
    int64_t key;
    uint64_t value;
  } pair = {KEY_IMA_EXT_0, 0};
  has[HWCAP] = (uint32_t)getauxval(AUX_HWCAP);
  if (syscall(SYSTEM_CALL_HWPROBE, &pair, 1L, 0L, NULL, 0L) == 0 && pair.key == KEY_IMA_EXT_0)
    has[HWPROBE_IMA_EXT_0] = (uint32_t)pair.value;
  return 0;
}
#endif

static int lacks(const char *name, size_t length, const uint32_t *has, uint32_t saved) {
  size_t i;
  for (i = 0; i < sizeof features / sizeof *features; ++i) {
    const feature *f = &features[i];
    if (strlen(f->name) == length && memcmp(f->name, name, length) == 0)
      return !(has[f->word] >> f->bit & 1u) || (saved & f->saved) != f->saved;
  }
  return 1;
}

size_t subbyte_missing_features(const subbyte_model *model, char *names, size_t bytes) {
  uint32_t has[WORDS] = {0};
  size_t count = 0, used = 0, length;
  const char *name;
  const uint32_t saved = ask_cpu(has);
  if (names != NULL && bytes > 0) names[0] = '\0';
  if (model == NULL || model->abi != SUBBYTE_ABI || model->features == NULL) return 0;
  for (name = model->features; *name; name += length) {
    length = strcspn(name, " ");
    if (length == 0) {
      length = 1;
      continue;
    }
    if (!lacks(name, length, has, saved)) continue;
    if (names != NULL && used + length + 2 <= bytes) {
      if (used > 0) names[used++] = ' ';
      memcpy(names + used, name, length);
      used += length;
      names[used] = '\0';
    }
    ++count;
  }
  return count;
}

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>

/* Linux saves tile registers only for processes that asked; one that did not is killed by SIGILL. Asking again is harmless. */
static int tiles_granted(void) {
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM of asm/prctl.h */
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#else
static int tiles_granted(void) { return 0; }
#endif

int32_t subbyte_ask_for(const subbyte_model *model) {
  static const subbyte_model *granted; /* the last one that may run: asked once, not at every run */
  if (__atomic_load_n(&granted, __ATOMIC_RELAXED) == model) return SUBBYTE_OK;
  if (model->needs & ~(uint32_t)SUBBYTE_NEEDS_TILES) return SUBBYTE_REFUSED;
  if (subbyte_missing_features(model, NULL, 0) > 0) return SUBBYTE_LACKS_FEATURES;
  if ((model->needs & SUBBYTE_NEEDS_TILES) && !tiles_granted()) return SUBBYTE_REFUSED;
  __atomic_store_n(&granted, model, __ATOMIC_RELAXED);
  return SUBBYTE_OK;
}

#else /* a CPU that cannot be asked */
SUBBYTE_COLD size_t subbyte_missing_features(const subbyte_model *model, char *names, size_t bytes) {
  const char *name = model != NULL && model->abi == SUBBYTE_ABI && model->features != NULL ? model->features : "";
  size_t count = *name != '\0';
  for (; *name; ++name) {
    count += *name == ' ';
    if (names != NULL && bytes > 1) *names++ = *name, --bytes;
  }
  if (names != NULL && bytes > 0) *names = '\0';
  return count;
}

SUBBYTE_COLD int32_t subbyte_ask_for(const subbyte_model *model) {
  if (model->needs) return SUBBYTE_REFUSED;
  return model->features != NULL && *model->features ? SUBBYTE_LACKS_FEATURES : SUBBYTE_OK;
}
#endif
