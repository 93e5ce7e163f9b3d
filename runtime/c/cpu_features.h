/* Written by `make generate` from runtime/features.py: do not edit. (The C library has a <features.h>.)
 *
 * SUBBYTE_FEATURES(ROW): a row for each feature that a CPU of this family can be asked about.
 *   ROW(name, word, bit, saved)
 *     word: of the enumeration above it, which needs.c reads from the CPU or the system
 *     bit: of the word, set if the CPU has the feature
 *     saved: bits of XCR0, registers that the system must save for the feature
 */
#ifndef SUBBYTE_CPU_FEATURES_H
#define SUBBYTE_CPU_FEATURES_H

#if defined(__x86_64__) || defined(__i386__)
enum { LEAF_1_ECX, LEAF_7_EBX, LEAF_7_ECX, LEAF_7_EDX, LEAF_7_1_EAX, LEAF_EXTENDED_ECX, WORDS };
#define SUBBYTE_FEATURES(ROW) \
  ROW("ssse3", LEAF_1_ECX, 9, 0x0) \
  ROW("sse41", LEAF_1_ECX, 19, 0x0) \
  ROW("sse42", LEAF_1_ECX, 20, 0x0) \
  ROW("popcnt", LEAF_1_ECX, 23, 0x0) \
  ROW("avx", LEAF_1_ECX, 28, 0x6) \
  ROW("f16c", LEAF_1_ECX, 29, 0x6) \
  ROW("avx2", LEAF_7_EBX, 5, 0x6) \
  ROW("fma", LEAF_1_ECX, 12, 0x6) \
  ROW("bmi1", LEAF_7_EBX, 3, 0x0) \
  ROW("bmi2", LEAF_7_EBX, 8, 0x0) \
  ROW("abm", LEAF_EXTENDED_ECX, 5, 0x0) \
  ROW("movbe", LEAF_1_ECX, 22, 0x0) \
  ROW("avxvnni", LEAF_7_1_EAX, 4, 0x6) \
  ROW("avx512f", LEAF_7_EBX, 16, 0xe6) \
  ROW("avx512cd", LEAF_7_EBX, 28, 0xe6) \
  ROW("avx512bw", LEAF_7_EBX, 30, 0xe6) \
  ROW("avx512dq", LEAF_7_EBX, 17, 0xe6) \
  ROW("avx512vl", LEAF_7_EBX, 31, 0xe6) \
  ROW("avx512vnni", LEAF_7_ECX, 11, 0xe6) \
  ROW("avx512vbmi", LEAF_7_ECX, 1, 0xe6) \
  ROW("avx512vbmi2", LEAF_7_ECX, 6, 0xe6) \
  ROW("avx512ifma", LEAF_7_EBX, 21, 0xe6) \
  ROW("avx512bitalg", LEAF_7_ECX, 12, 0xe6) \
  ROW("avx512vpopcntdq", LEAF_7_ECX, 14, 0xe6) \
  ROW("amxtile", LEAF_7_EDX, 24, 0x60000) \
  ROW("amxint8", LEAF_7_EDX, 25, 0x60000) \
  ROW("gfni", LEAF_7_ECX, 8, 0x0)
#elif defined(__aarch64__) && defined(__linux__)
enum { HWCAP, HWCAP2, WORDS };
#define SUBBYTE_FEATURES(ROW) \
  ROW("neon", HWCAP, 1, 0x0) \
  ROW("dotprod", HWCAP, 20, 0x0) \
  ROW("i8mm", HWCAP2, 13, 0x0) \
  ROW("sve", HWCAP, 22, 0x0)
#elif defined(__riscv) && defined(__linux__)
enum { HWCAP, HWPROBE_IMA_EXT_0, WORDS };
#define SUBBYTE_FEATURES(ROW) \
  ROW("i", HWCAP, 8, 0x0) \
  ROW("m", HWCAP, 12, 0x0) \
  ROW("a", HWCAP, 0, 0x0) \
  ROW("f", HWCAP, 5, 0x0) \
  ROW("d", HWCAP, 3, 0x0) \
  ROW("c", HWCAP, 2, 0x0) \
  ROW("v", HWCAP, 21, 0x0) \
  ROW("zba", HWPROBE_IMA_EXT_0, 3, 0x0) \
  ROW("zbb", HWPROBE_IMA_EXT_0, 4, 0x0) \
  ROW("zbs", HWPROBE_IMA_EXT_0, 5, 0x0)
#endif

#endif
