// Products with a matrix of 4-bit integers [depth, columns], each block of its rows with a scale for every column, read
// from memory as it lies; compiled once for each instruction set.
//
// The rows of a block, 32 at most, are read side by side. x becomes integers of 8 bits with a scale for each of them and
// each row of x, as in ONNX Runtime's own kernels, and their sum is exact in 16 bits (|sum| <= 8 * 127 * 32). A column is
// one chain of such sums, so a row's result does not depend on how many rows or threads there are.
#include <string.h>

#include "level.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { DEPTH = 32, SHORTS = 2 * LANES, ACROSS = 4 * SHORTS, ROWS_TOGETHER = 16 };

typedef uint16_t shorts __attribute__((vector_size(LANES * 4)));
typedef uint16_t loose_shorts __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
typedef int16_t half_shorts __attribute__((vector_size(LANES * 2)));

// Some rows of the matrix that share their scales.
struct slab {
  const uint8_t *w;
  int64_t stride;      // bytes from row to row
  const float *scale;  // of each column
  int depth;
  bool is_whole;       // all of its columns are computed here
};

// The numbers of one row of x that meet them.
struct factors {
  uint32_t pair[DEPTH / 2];  // x / scale: two numbers of 8 bits, and the same again; sums are taken modulo 2^16
  uint16_t offset;           // 8 times the sum of all numbers: nibbles are taken as 0 .. 15
  float scale;
  const float *x;
};

// NaN or infinity anywhere makes the scale NaN, and so all that it scales.
static void take_factors(const float *x, int depth, struct factors *factors) {
  vec sizes = {0}, poison = {0}, totals = {0};
  for (int i = 0; i < depth; i += LANES) sizes = larger(absolute(load(x + i)), sizes), poison += load(x + i) * 0.0f;
  float most = largest(sizes), bad = sum(poison);
  bool usable = most > 1e-30f && bad == 0.0f;
  const vec rounding = splat(12582912.0f), inverse = splat(usable ? 127.0f / most : 0.0f);
  int8_t numbers[DEPTH];
  for (int i = 0; i < depth; i += LANES) {
    vec number = usable ? (load(x + i) * inverse + rounding) - rounding : (vec){0};  // 1.5 * 2^23: it rounds
    byte_vec bytes = __builtin_convertvector(to_int(number), byte_vec);
    memcpy(numbers + i, &bytes, sizeof bytes);
    totals += number;
  }
  for (int k = 0; k < depth / 2; k++) {
    uint16_t pair;
    memcpy(&pair, numbers + 2 * k, sizeof pair);
    factors->pair[k] = pair * 0x10001u;
  }
  factors->offset = (uint16_t)(8 * (int)sum(totals));
  factors->scale = usable ? most / 127.0f : bad;
  factors->x = x;
}

// --- tiles ----------------------------------------------------------------------------------------------------------

#define EACH_SHORT(F, s) EACH_LANE(F, s), SECOND_HALF(F, s)
#if LANES == 16
#define SECOND_HALF(F, s) LANES_4(F, s, 16), LANES_4(F, s, 20), LANES_4(F, s, 24), LANES_4(F, s, 28)
#elif LANES == 8
#define SECOND_HALF(F, s) LANES_4(F, s, 8), LANES_4(F, s, 12)
#else
#define SECOND_HALF(F, s) LANES_4(F, s, 4)
#endif
#define IN_TURNS(lane, from) ((from) + (lane) / 2 + (lane) % 2 * SHORTS)  // a[from], b[from], a[from + 1], ...
#if defined(__clang__) || __GNUC__ >= 12
#define WEAVE(a, b, from) __builtin_shufflevector(a, b, EACH_SHORT(IN_TURNS, from))
#else
#define WEAVE(a, b, from) __builtin_shuffle(a, b, (shorts){EACH_SHORT(IN_TURNS, from)})
#endif

INLINE shorts short_splat(uint16_t x) { return x - (shorts){0}; }

// The nibbles of two rows of ACROSS columns, as bytes 0 .. 15, are multiplied with the two numbers of a pair and added to
// sums of 16 bits. What lies in which lane is what the instructions give; `in_order` puts it in order.
#if defined(__aarch64__)

// Low and high nibbles of the first row, then of the second.
INLINE void unpack(const uint8_t *w, int64_t stride, shorts both[4]) {
  const uint8x16_t one = veorq_u8(vld1q_u8(w), vdupq_n_u8(0x88));  // -8 .. 7 becomes 0 .. 15
  const uint8x16_t other = veorq_u8(vld1q_u8(w + stride), vdupq_n_u8(0x88)), low = vdupq_n_u8(15);
  both[0] = (shorts)vandq_u8(one, low), both[1] = (shorts)vshrq_n_u8(one, 4);
  both[2] = (shorts)vandq_u8(other, low), both[3] = (shorts)vshrq_n_u8(other, 4);
}

// Of the first 16 columns sums[0] has the even ones and sums[1] the odd ones, sums[2] and sums[3] those of the others.
INLINE void add_products(shorts sums[4], const shorts both[4], uint32_t pair) {
  const int8x16_t first = vdupq_n_s8((int8_t)pair), second = vdupq_n_s8((int8_t)(pair >> 8));
#pragma GCC unroll 2
  for (int odd = 0; odd < 2; odd++) {
    const int8x16_t one = (int8x16_t)both[odd], other = (int8x16_t)both[2 + odd];
    int16x8_t near = (int16x8_t)sums[odd], far = (int16x8_t)sums[2 + odd];
    near = vmlal_s8(near, vget_low_s8(one), vget_low_s8(first)), far = vmlal_high_s8(far, one, first);
    near = vmlal_s8(near, vget_low_s8(other), vget_low_s8(second)), far = vmlal_high_s8(far, other, second);
    sums[odd] = (shorts)near, sums[2 + odd] = (shorts)far;
  }
}

INLINE void in_order(const shorts sums[4], shorts columns[4]) {
  columns[0] = WEAVE(sums[0], sums[1], 0), columns[1] = WEAVE(sums[0], sums[1], LANES);
  columns[2] = WEAVE(sums[2], sums[3], 0), columns[3] = WEAVE(sums[2], sums[3], LANES);
}

#else

// Side by side, the first row low: lane i of both[j] has column 4 i + j.
INLINE void unpack(const uint8_t *w, int64_t stride, shorts both[4]) {
  shorts one = *(const loose_shorts *)w, other = *(const loose_shorts *)(w + stride);
  shorts low = ((one & 0xff) | other << 8) ^ short_splat(0x8888);  // -8 .. 7 becomes 0 .. 15
  shorts high = (one >> 8 | (other & 0xff00)) ^ short_splat(0x8888);
  both[0] = low & 0x0f0f, both[1] = (low >> 4) & 0x0f0f, both[2] = high & 0x0f0f, both[3] = (high >> 4) & 0x0f0f;
}

INLINE shorts products(shorts bytes, uint32_t pair) {
  typedef uint32_t words __attribute__((vector_size(LANES * 4)));
  shorts numbers = (shorts)(pair - (words){0});
#if defined(__AVX512BW__)
  return (shorts)_mm512_maddubs_epi16((__m512i)bytes, (__m512i)numbers);
#elif defined(__AVX2__)
  return (shorts)_mm256_maddubs_epi16((__m256i)bytes, (__m256i)numbers);
#else
  typedef int16_t signed_shorts __attribute__((vector_size(LANES * 4)));
  signed_shorts first = (signed_shorts)(numbers << 8) >> 8, second = (signed_shorts)numbers >> 8;
  return (bytes & 0xff) * (shorts)first + (bytes >> 8) * (shorts)second;
#endif
}

INLINE void add_products(shorts sums[4], const shorts both[4], uint32_t pair) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) sums[j] += products(both[j], pair);
}

INLINE void in_order(const shorts sums[4], shorts columns[4]) {
  shorts even[2] = {WEAVE(sums[0], sums[2], 0), WEAVE(sums[0], sums[2], LANES)};
  shorts odd[2] = {WEAVE(sums[1], sums[3], 0), WEAVE(sums[1], sums[3], LANES)};
  columns[0] = WEAVE(even[0], odd[0], 0), columns[1] = WEAVE(even[0], odd[0], LANES);
  columns[2] = WEAVE(even[1], odd[1], 0), columns[3] = WEAVE(even[1], odd[1], LANES);
}

#endif

// out += sums * scale
INLINE void add_sums(shorts sums[4], const struct factors *factors, const float *scale, float *out) {
  shorts columns[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) sums[j] -= short_splat(factors->offset);
  in_order(sums, columns);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    half_shorts parts[2];
    memcpy(parts, &columns[j], sizeof parts);
#pragma GCC unroll 2
    for (int part = 0; part < 2; part++) {
      int n = j * SHORTS + part * LANES;
      vec value = __builtin_convertvector(parts[part], vec);
      store(out + n, load(out + n) + value * (load(scale + n) * factors->scale));
    }
  }
}

// Asks for a part of the next slab, so that all of it is asked for while this one is multiplied: in the order of memory
// where all columns are computed, else the two rows that lie where w lies in this slab.
INLINE void prefetch_rows(const struct slab *slab, const uint8_t *w, int64_t n, int k) {
  const uint8_t *next = slab->w + slab->depth * slab->stride + n * slab->depth / 2 + k * ACROSS / 2;
  if (slab->is_whole)
    for (int line = 0; line < ACROSS; line += 64) __builtin_prefetch(next + line, 0, 2);
  else
    for (int row = 0; row < 2; row++) __builtin_prefetch(w + (slab->depth + row) * slab->stride, 0, 2);
}

// The columns n .. n + ACROSS - 1 for one row of x.
INLINE void add_nibbles(const struct slab *slab, const struct factors *factors, int64_t n, float *out) {
  const uint8_t *w = slab->w + n / 2;
  shorts sums[4] = {{0}};
#pragma GCC unroll 2
  for (int k = 0; k < slab->depth; k += 2, w += 2 * slab->stride) {
    shorts both[4];
    prefetch_rows(slab, w, n, k);
    unpack(w, slab->stride, both);
    add_products(sums, both, factors->pair[k / 2]);
  }
  add_sums(sums, factors, slab->scale + n, out);
}

// The same for several rows, `row` floats apart in out: the nibbles are unpacked once.
static void add_nibbles_of_rows(const struct slab *slab, const struct factors *factors, int rows, int64_t n, float *out,
                                int64_t row) {
  const uint8_t *w = slab->w + n / 2;
  shorts both[DEPTH / 2][4];
  for (int k = 0; k < slab->depth; k += 2, w += 2 * slab->stride) {
    prefetch_rows(slab, w, n, k);
    unpack(w, slab->stride, both[k / 2]);
  }
  for (int r = 0; r < rows; r++) {
    shorts sums[4] = {{0}};
#pragma GCC unroll 4
    for (int k = 0; k < slab->depth / 2; k++) add_products(sums, both[k], factors[r].pair[k]);
    add_sums(sums, factors + r, slab->scale + n, out + r * row);
  }
}

// --- all columns ----------------------------------------------------------------------------------------------------

// In floating point, a column at a time.
static void add_exactly(const struct slab *slab, const float *x, int64_t first, int64_t last, float *out) {
  for (int64_t n = first; n < last; n++) {
    float total = 0.0f;
    for (int k = 0; k < slab->depth; k++) {
      int nibble = slab->w[k * slab->stride + n / 2] >> (n % 2 * 4) & 15;
      total += x[k] * (float)((nibble ^ 8) - 8);
    }
    out[n] += total * slab->scale[n];
  }
}

static void add_tile(const struct slab *slab, const struct factors *factors, int rows, int64_t n, float *out,
                     int64_t row) {
  if (rows == 1)
    add_nibbles(slab, factors, n, out);
  else
    add_nibbles_of_rows(slab, factors, rows, n, out, row);
}

// A slab of a matrix that is narrower than a tile, filled up with zeros.
struct wide_slab {
  uint8_t w[DEPTH][ACROSS / 2];
  float scale[ACROSS];
};
static struct slab widen(const struct slab *slab, int64_t columns, struct wide_slab *wide) {
  memset(wide, 0, sizeof *wide);
  for (int k = 0; k < slab->depth; k++) memcpy(wide->w[k], slab->w + k * slab->stride, (size_t)slab->stride);
  memcpy(wide->scale, slab->scale, (size_t)columns * sizeof(float));
  return (struct slab){wide->w[0], ACROSS / 2, wide->scale, slab->depth, false};
}

// The columns first .. last - 1 of some rows. What fills no tile is computed in one that overlaps its neighbour.
static void add_slab(const struct slab *slab, const struct product *call, const struct factors *factors, int rows,
                     int64_t first, int64_t last, float *out) {
  int64_t n = first, columns = call->columns;
  if (call->exact) {
    for (int r = 0; r < rows; r++) add_exactly(slab, factors[r].x, first, last, out + r * columns);
    return;
  }
  for (; n + ACROSS <= last; n += ACROSS) add_tile(slab, factors, rows, n, out + n, columns);
  if (n == last) return;
  int64_t start = last > ACROSS ? last - ACROSS : 0;
  float rest[ROWS_TOGETHER][ACROSS];
  size_t bytes = (size_t)(last - n) * sizeof(float);
  for (int r = 0; r < rows; r++) {
    memset(rest[r], 0, sizeof rest[r]);
    memcpy(rest[r] + (n - start), out + r * columns + n, bytes);
  }
  struct wide_slab wide;
  struct slab tile_slab = columns < ACROSS ? widen(slab, columns, &wide) : *slab;
  add_tile(&tile_slab, factors, rows, start, rest[0], ACROSS);
  for (int r = 0; r < rows; r++) memcpy(out + r * columns + n, rest[r] + (n - start), bytes);
}

void LEVEL_NAME(multiply_int4)(const struct product *call, int64_t task) {
  int64_t first = task * call->panel, last = first + call->panel, columns = call->columns;
  if (last > columns) last = columns;
  for (int64_t row = 0; row < call->rows; row++)
    memset(call->out + row * columns + first, 0, (size_t)(last - first) * sizeof(float));
  int depth = call->block < DEPTH ? (int)call->block : DEPTH;
  struct slab slab = {.stride = columns / 2, .depth = depth, .is_whole = call->panel >= columns};
  struct factors factors[ROWS_TOGETHER];
  for (int64_t row = 0; row < call->rows; row += ROWS_TOGETHER) {
    int rows = call->rows - row < ROWS_TOGETHER ? (int)(call->rows - row) : ROWS_TOGETHER;
    for (int64_t k = 0; k < call->depth; k += depth) {
      slab.w = call->int4 + k * slab.stride, slab.scale = call->scale + k / call->block * columns;
      for (int r = 0; r < rows; r++) take_factors(call->x + (row + r) * call->depth + k, depth, factors + r);
      add_slab(&slab, call, factors, rows, first, last, call->out + row * columns);
    }
  }
  for (int64_t row = 0; row < call->rows && call->add; row++)
    for (int64_t n = first; n < last; n++) call->out[row * columns + n] += call->add[row * call->add_row + n];
}
