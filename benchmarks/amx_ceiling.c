/* What plain C gets out of AMX's tile registers, to judge our kernels by: no packing, no unpacking, no runtime.
 *
 *     cc -O2 -march=sapphirerapids benchmarks/amx_ceiling.c -o /tmp/amx_ceiling && taskset -c 1 /tmp/amx_ceiling
 *
 * First GOP/s of the instruction alone, on zeros and on other data. Then a product of 192 x 384 codes with 384 x N int8
 * weights, us, with the caches warm and emptied: sums only; with float output; with the output's lines fetched during the
 * product before they are written. Last, reading 197 x 384 floats and packing their signs. Minimum of 200 (emptied: 100).
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ROWS = 192, DEPTH = 384, WIDEST = 1536, SIGNS = 197 * 384 };
static uint8_t codes[ROWS * DEPTH] __attribute__((aligned(64)));
static uint8_t weights[DEPTH * WIDEST] __attribute__((aligned(64)));
static int32_t sums[1024] __attribute__((aligned(64)));
static float output[ROWS * WIDEST] __attribute__((aligned(64))), input[SIGNS] __attribute__((aligned(64)));
static uint16_t packed[SIGNS / 16];
static char other[8 << 20];
static volatile long sink;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3; /* us */
}

static void empty_caches(void) {
  for (size_t i = 0; i < sizeof other; i += 64) sink += other[i];
}

enum { SUMS_ONLY, WITH_OUTPUT, FETCHED_AHEAD };

static void product(int columns, int mode) {
  const __m512 scale = _mm512_set1_ps(0.01f), bias = _mm512_set1_ps(1.0f);
  for (int column = 0; column < columns; column += 32)
    for (int row = 0; row < ROWS; row += 32) {
      const uint8_t *a = codes + row * DEPTH, *w = weights + column * DEPTH;
      float *out = output + row * columns + column;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int k = 0; k < DEPTH / 64; ++k) {
        if (mode == FETCHED_AHEAD)
          for (int p = k * 6; p < k * 6 + 6 && p < 32; ++p) {
            _mm_prefetch((const char *)(out + p * columns), _MM_HINT_T0);
            _mm_prefetch((const char *)(out + p * columns + 16), _MM_HINT_T0);
          }
        _tile_loadd(4, w + k * 2048, 128);
        _tile_loadd(5, w + k * 2048 + 64, 128);
        _tile_loadd(6, a + k * 64, DEPTH);
        _tile_dpbusd(0, 6, 4);
        _tile_dpbusd(1, 6, 5);
        _tile_loadd(7, a + 16 * DEPTH + k * 64, DEPTH);
        _tile_dpbusd(2, 7, 4);
        _tile_dpbusd(3, 7, 5);
      }
      _tile_stored(0, sums, 128);
      _tile_stored(1, sums + 16, 128);
      _tile_stored(2, sums + 512, 128);
      _tile_stored(3, sums + 528, 128);
      if (mode == SUMS_ONLY) continue;
      for (int p = 0; p < 32; ++p)
        for (int v = 0; v < 32; v += 16) {
          const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + p * 32 + v));
          _mm512_store_ps(out + p * columns + v, _mm512_add_ps(_mm512_mul_ps(sum, scale), bias));
        }
    }
}

static void pack(void) {
  const __m512 threshold = _mm512_set1_ps(0.1f);
  for (int i = 0; i < SIGNS; i += 16)
    packed[i / 16] = (uint16_t)_mm512_cmp_ps_mask(_mm512_load_ps(input + i), threshold, _CMP_GE_OQ);
  sink += packed[SIGNS / 16 - 1];
  __asm__ volatile("" ::: "memory"); /* all of it, whatever is looked at */
}

static double alone(void) {
  double best = 1e9;
  _tile_loadd(4, weights, 128);
  _tile_loadd(5, weights + 64, 128);
  _tile_loadd(6, codes, DEPTH);
  _tile_loadd(7, codes + 16 * DEPTH, DEPTH);
  for (int i = 0; i < 200; ++i) {
    const double start = now();
    for (int k = 0; k < 500; ++k) {
      _tile_dpbusd(0, 6, 4);
      _tile_dpbusd(1, 6, 5);
      _tile_dpbusd(2, 7, 4);
      _tile_dpbusd(3, 7, 5);
    }
    const double taken = now() - start;
    if (taken < best) best = taken;
  }
  return 500 * 4 * 2.0 * 16 * 16 * 64 / best / 1e3; /* GOP/s */
}

int main(void) {
  static const char *names[] = {"sums only", "with output", "output fetched ahead"};
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } configuration;
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return puts("Linux does not lend tile registers here"), 1;
  memset(&configuration, 0, sizeof configuration);
  configuration.palette = 1;
  for (int i = 0; i < 8; ++i) configuration.row_bytes[i] = 64, configuration.rows[i] = 16;
  _tile_loadconfig(&configuration);
  memset(other, 1, sizeof other);
  for (int i = 0; i < SIGNS; ++i) input[i] = (float)(i % 7) - 3;
  printf("instruction alone, zeros: %.0f GOP/s\n", alone());
  for (size_t i = 0; i < sizeof codes; ++i) codes[i] = (uint8_t)(i * 7);
  for (size_t i = 0; i < sizeof weights; ++i) weights[i] = (uint8_t)(i * 5);
  memset(output, 0, sizeof output);
  printf("instruction alone, other data: %.0f GOP/s\n", alone());
  for (int columns = 384; columns <= WIDEST; columns *= 4)
    for (int mode = SUMS_ONLY; mode <= FETCHED_AHEAD; ++mode) {
      double warm = 1e9, cold = 1e9;
      for (int i = 0; i < 300; ++i) {
        if (i >= 200) empty_caches();
        const double start = now();
        product(columns, mode);
        const double taken = now() - start;
        if (i < 200 && taken < warm) warm = taken;
        if (i >= 200 && taken < cold) cold = taken;
      }
      printf("192x384x%d, %s: warm %.1f us, caches emptied %.1f us\n", columns, names[mode], warm, cold);
    }
  double warm = 1e9, cold = 1e9;
  for (int i = 0; i < 300; ++i) {
    if (i >= 200) empty_caches();
    const double start = now();
    pack();
    const double taken = now() - start;
    if (i < 200 && taken < warm) warm = taken;
    if (i >= 200 && taken < cold) cold = taken;
  }
  printf("signs of 197x384 floats: warm %.1f us, caches emptied %.1f us\n", warm, cold);
  return 0;
}
