/* What a model needs of the machine: instructions of the CPU, which it has or has not, and what Linux must be asked for.
 *
 * To add a feature: a row below, under the name that tvm_kernels/targets.py gives it. A name that is not here, or that this
 * file cannot ask the CPU about, is taken as there.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for syscall */
#endif

#include "internal.h"

#if defined(__x86_64__) || defined(__i386__) || (defined(__aarch64__) && defined(__linux__))
#include <string.h>

typedef struct {
  char name[16]; /* not a pointer: no relocations, a third of the size */
  uint8_t word;  /* of `has` */
  uint8_t bit;
  uint8_t state; /* registers that the system must save for it */
} feature;

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

enum { LEAF_1_ECX, LEAF_7_EBX, LEAF_7_ECX, LEAF_7_EDX, LEAF_7_1_EAX, LEAF_EXTENDED_ECX, WORDS };
enum { NO_STATE, YMM, ZMM, TILES };
static const uint32_t STATES[] = {0, 0x6, 0xe6, 0x60000}; /* bits of XCR0 */
enum { OSXSAVE = 1 << 27 };                               /* of LEAF_1_ECX */

static const feature features[] = {
    {"ssse3", LEAF_1_ECX, 9, NO_STATE},
    {"fma", LEAF_1_ECX, 12, YMM},
    {"sse41", LEAF_1_ECX, 19, NO_STATE},
    {"sse42", LEAF_1_ECX, 20, NO_STATE},
    {"movbe", LEAF_1_ECX, 22, NO_STATE},
    {"popcnt", LEAF_1_ECX, 23, NO_STATE},
    {"avx", LEAF_1_ECX, 28, YMM},
    {"f16c", LEAF_1_ECX, 29, YMM},
    {"abm", LEAF_EXTENDED_ECX, 5, NO_STATE},
    {"bmi1", LEAF_7_EBX, 3, NO_STATE},
    {"avx2", LEAF_7_EBX, 5, YMM},
    {"bmi2", LEAF_7_EBX, 8, NO_STATE},
    {"avx512f", LEAF_7_EBX, 16, ZMM},
    {"avx512dq", LEAF_7_EBX, 17, ZMM},
    {"avx512ifma", LEAF_7_EBX, 21, ZMM},
    {"avx512cd", LEAF_7_EBX, 28, ZMM},
    {"avx512bw", LEAF_7_EBX, 30, ZMM},
    {"avx512vl", LEAF_7_EBX, 31, ZMM},
    {"avx512vbmi", LEAF_7_ECX, 1, ZMM},
    {"avx512vbmi2", LEAF_7_ECX, 6, ZMM},
    {"gfni", LEAF_7_ECX, 8, NO_STATE},
    {"avx512vnni", LEAF_7_ECX, 11, ZMM},
    {"avx512bitalg", LEAF_7_ECX, 12, ZMM},
    {"avx512vpopcntdq", LEAF_7_ECX, 14, ZMM},
    {"amxtile", LEAF_7_EDX, 24, TILES},
    {"amxint8", LEAF_7_EDX, 25, TILES},
    {"avxvnni", LEAF_7_1_EAX, 4, YMM},
};

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
#else /* aarch64 */
#include <sys/auxv.h>

enum { CAPABILITIES, CAPABILITIES_2, WORDS };
static const uint32_t STATES[] = {0};
enum { AUX_CAPABILITIES = 16, AUX_CAPABILITIES_2 = 26 }; /* AT_HWCAP, AT_HWCAP2; bits: asm/hwcap.h */

static const feature features[] = {
    {"neon", CAPABILITIES, 1, 0},
    {"dotprod", CAPABILITIES, 20, 0},
    {"sve", CAPABILITIES, 22, 0},
    {"i8mm", CAPABILITIES_2, 13, 0},
};

static uint32_t ask_cpu(uint32_t *has) {
  has[CAPABILITIES] = (uint32_t)getauxval(AUX_CAPABILITIES);
  has[CAPABILITIES_2] = (uint32_t)getauxval(AUX_CAPABILITIES_2);
  return 0;
}
#endif

static int lacks(const char *name, size_t length, const uint32_t *has, uint32_t saved) {
  size_t i;
  for (i = 0; i < sizeof features / sizeof *features; ++i) {
    const feature *f = &features[i];
    if (strlen(f->name) == length && memcmp(f->name, name, length) == 0)
      return !(has[f->word] >> f->bit & 1u) || (saved & STATES[f->state]) != STATES[f->state];
  }
  return 0;
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

/* Linux saves tile registers only for processes that asked; one that did not dies of SIGILL. Asking again is harmless. */
static int tiles_lent(void) {
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM of asm/prctl.h */
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#else
static int tiles_lent(void) { return 0; }
#endif

int32_t subbyte_ask_for(const subbyte_model *model) {
  static const subbyte_model *granted; /* the last one that may run: asked once, not at every run */
  if (__atomic_load_n(&granted, __ATOMIC_RELAXED) == model) return SUBBYTE_OK;
  if (model->needs & ~(uint32_t)SUBBYTE_NEEDS_TILES) return SUBBYTE_REFUSED;
  if (subbyte_missing_features(model, NULL, 0) > 0) return SUBBYTE_LACKS_FEATURES;
  if ((model->needs & SUBBYTE_NEEDS_TILES) && !tiles_lent()) return SUBBYTE_REFUSED;
  __atomic_store_n(&granted, model, __ATOMIC_RELAXED);
  return SUBBYTE_OK;
}

#else /* a CPU that cannot be asked */
size_t subbyte_missing_features(const subbyte_model *model, char *names, size_t bytes) {
  (void)model;
  if (names != NULL && bytes > 0) names[0] = '\0';
  return 0;
}

int32_t subbyte_ask_for(const subbyte_model *model) { return model->needs ? SUBBYTE_REFUSED : SUBBYTE_OK; }
#endif
