// Products with a matrix that is read from memory as it lies; compiled once for each instruction set.
//
// A task is a panel of columns. Few rows of x: eight rows of the matrix are read side by side, so that the sums of a
// panel are loaded and stored once for eight, and meanwhile the next eight are asked for. Many rows: a tile of sums stays
// in registers for the whole depth, and its columns of the matrix stay in the cache for all rows. Either way each sum is
// one chain from the first product to the last, so a row's result does not depend on how many rows there are.
#include <string.h>

#include "level.h"

enum { SIDE_BY_SIDE = 8, BLOCK_DEPTH = 256 };
#if LANES == 16 || defined(__aarch64__)
enum { TILE_ROWS = 6, TILE_COLUMNS = 4 };  // in vectors: 24 sums of 32 registers
#else
enum { TILE_ROWS = 4, TILE_COLUMNS = 2 };  // 8 of 16
#endif

// --- few rows -------------------------------------------------------------------------------------------------------

// out[n] += sum of x[i] * w[i][n], for `depth` rows of the matrix from w on and the columns first .. last - 1.
INLINE void add_rows(const int depth, int64_t columns, const float *restrict x, const float *restrict w, int64_t first,
                     int64_t last, float *restrict out) {
  vec factors[SIDE_BY_SIDE];
  for (int i = 0; i < depth; i++) factors[i] = splat(x[i]);
  int64_t n = first;
  for (; n + LANES <= last; n += LANES) {
    vec sum = load(out + n);
#pragma GCC unroll 8
    for (int i = 0; i < depth; i++) {
      if (n % 16 == 0) __builtin_prefetch(w + (depth + i) * columns + n, 0, 2);
      sum += factors[i] * load(w + i * columns + n);
    }
    store(out + n, sum);
  }
  for (; n < last; n++)
    for (int i = 0; i < depth; i++) out[n] += x[i] * w[i * columns + n];
}

static void multiply_few(const struct product *call, int64_t first, int64_t last) {
  int64_t columns = call->columns;
  for (int64_t k = 0; k < call->depth;) {
    int64_t depth = call->depth - k >= SIDE_BY_SIDE ? SIDE_BY_SIDE : 1;
    for (int64_t row = 0; row < call->rows; row++) {
      const float *x = call->x + row * call->depth + k;
      if (depth == 1)
        add_rows(1, columns, x, call->w + k * columns, first, last, call->out + row * columns);
      else
        add_rows(SIDE_BY_SIDE, columns, x, call->w + k * columns, first, last, call->out + row * columns);
    }
    k += depth;
  }
}

// --- many rows ------------------------------------------------------------------------------------------------------

// Part of a matrix: `depth` rows and the columns of one tile, `stride` floats from row to row.
struct block {
  const float *w;
  int64_t stride, first, depth;  // first: of its rows, counted in the whole matrix
};

// The part of the matrix that is multiplied next. It is asked for line by line between the products of this one: many
// requests at once would make the processor wait.
struct ahead {
  const char *line;
  int64_t left, lines, column, skip;  // lines: of a row, and left: of all rows; skip: bytes between two rows
};

INLINE void ask(struct ahead *ahead) {
  if (ahead->left <= 0) return;
  __builtin_prefetch(ahead->line, 0, 2);
  ahead->left--, ahead->line += 64;
  if (++ahead->column == ahead->lines) ahead->column = 0, ahead->line += ahead->skip;
}

// The rows below those from `from` on, or after the last row the panel to the right of `last`.
static struct ahead next_part(const struct product *call, int64_t from, int64_t first, int64_t last) {
  const bool below = from + BLOCK_DEPTH < call->depth;
  int64_t rows = below ? call->depth - from - BLOCK_DEPTH : call->depth, right = call->columns - last;
  int64_t width = below || right > last - first ? last - first : right;
  if (rows > BLOCK_DEPTH) rows = BLOCK_DEPTH;
  const float *w = below ? call->w + (from + BLOCK_DEPTH) * call->columns + first : call->w + last;
  return (struct ahead){(const char *)w, rows * (width / 16), width / 16, 0, (call->columns - width / 16 * 16) * 4};
}

// Adds the products of a block to the sums of `rows` rows of x and `vectors` vectors of columns from n on.
INLINE void add_tile(const struct product *call, const struct block *block, const int rows, const int vectors,
                     int64_t row, int64_t n, struct ahead *next) {
  struct ahead ahead = *next;
  const int64_t columns = call->columns, depth = call->depth, stride = block->stride;
  const float *restrict x = call->x + row * depth + block->first, *restrict w = block->w;
  float *restrict out = call->out + row * columns + n;
  vec sums[TILE_ROWS][TILE_COLUMNS];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int c = 0; c < vectors; c++) sums[r][c] = load(out + r * columns + c * LANES);
  for (int64_t k = 0; k < block->depth; k++, w += stride) {
    if (k % 2 == 0) ask(&ahead);
#pragma GCC unroll 4
    for (int c = 0; c < vectors; c++) {
      vec weights = load(w + c * LANES);
#pragma GCC unroll 6
      for (int r = 0; r < rows; r++) sums[r][c] += x[r * depth + k] * weights;
    }
  }
  *next = ahead;
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int c = 0; c < vectors; c++) store(out + r * columns + c * LANES, sums[r][c]);
}

INLINE void add_block(const struct product *call, const struct block *block, const int vectors, int64_t n,
                      struct ahead *ahead) {
  int64_t row = 0;
  for (; row + TILE_ROWS <= call->rows; row += TILE_ROWS) add_tile(call, block, TILE_ROWS, vectors, row, n, ahead);
  for (; row + 4 <= call->rows; row += 4) add_tile(call, block, 4, vectors, row, n, ahead);
  for (; row + 2 <= call->rows; row += 2) add_tile(call, block, 2, vectors, row, n, ahead);
  for (; row < call->rows; row++) add_tile(call, block, 1, vectors, row, n, ahead);
}

// A block is copied, so that its rows lie one after another and stay in the cache for all rows of x.
static __attribute__((noinline)) void multiply_many(const struct product *call, int64_t first, int64_t last) {
  float copy[BLOCK_DEPTH * TILE_COLUMNS * LANES] __attribute__((aligned(64)));
  for (int64_t from = 0; from < call->depth; from += BLOCK_DEPTH) {
    struct block block = {copy, TILE_COLUMNS * LANES, from, call->depth - from};
    if (block.depth > BLOCK_DEPTH) block.depth = BLOCK_DEPTH;
    const float *w = call->w + from * call->columns;
    struct ahead ahead = next_part(call, from, first, last);
    int64_t n = first;
    for (; n + TILE_COLUMNS * LANES <= last; n += TILE_COLUMNS * LANES) {
      for (int64_t k = 0; k < block.depth; k++)
#pragma GCC unroll 4
        for (int c = 0; c < TILE_COLUMNS; c++)
          store(copy + (k * TILE_COLUMNS + c) * LANES, load(w + k * call->columns + n + c * LANES));
      add_block(call, &block, TILE_COLUMNS, n, &ahead);
    }
    block.stride = call->columns;
    for (; n + LANES <= last; n += LANES) {
      block.w = w + n;
      add_block(call, &block, 1, n, &ahead);
    }
    for (; n < last; n++)
      for (int64_t row = 0; row < call->rows; row++)
        for (int64_t k = 0; k < block.depth; k++)
          call->out[row * call->columns + n] += call->x[row * call->depth + from + k] * w[k * call->columns + n];
  }
}

// What is added comes last: small products would round to its last place.
static void multiply_panel(const struct product *call, int64_t first, int64_t last) {
  for (int64_t row = 0; row < call->rows; row++)
    memset(call->out + row * call->columns + first, 0, (size_t)(last - first) * sizeof(float));
  if (call->rows <= FEW_ROWS)
    multiply_few(call, first, last);
  else
    multiply_many(call, first, last);
  for (int64_t row = 0; row < call->rows && call->add; row++)
    for (int64_t n = first; n < last; n++) call->out[row * call->columns + n] += call->add[row * call->add_row + n];
}

// --- a transposed matrix --------------------------------------------------------------------------------------------

// The sums of LANES columns whose weights lie one after another, [N, K].
INLINE void dot_columns(const struct product *call, const float *x, int64_t n, float *out) {
  vec sums[LANES];
#pragma GCC unroll 16
  for (int j = 0; j < LANES; j++) sums[j] = (vec){0};
  int64_t full = call->depth / LANES * LANES;
  for (int64_t k = 0; k < full; k += LANES) {
    vec value = load(x + k);
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++) sums[j] += value * load(call->w + (n + j) * call->depth + k);
  }
  store(out + n, sum_rows(sums));
  for (int j = 0; j < LANES; j++)
    for (int64_t k = full; k < call->depth; k++) out[n + j] += x[k] * call->w[(n + j) * call->depth + k];
}

static void multiply_transposed(const struct product *call, int64_t first, int64_t last) {
  for (int64_t n = first; n < last; n += LANES)
    for (int64_t row = 0; row < call->rows; row++) {
      const float *x = call->x + row * call->depth;
      float *out = call->out + row * call->columns;
      if (n + LANES <= last)
        dot_columns(call, x, n, out);
      else
        for (int64_t rest = n; rest < last; rest++) {
          out[rest] = 0.0f;
          for (int64_t k = 0; k < call->depth; k++) out[rest] += x[k] * call->w[rest * call->depth + k];
        }
      for (int64_t j = n; j < last && j < n + LANES && call->add; j++) out[j] += call->add[row * call->add_row + j];
    }
}

void LEVEL_NAME(multiply)(const struct product *call, int64_t task) {
  int64_t first = task * call->panel, last = first + call->panel;
  if (last > call->columns) last = call->columns;
  if (call->transposed)
    multiply_transposed(call, first, last);
  else
    multiply_panel(call, first, last);
}
