// Products of few rows with a matrix that is read once from memory, as it lies; compiled once for each instruction set.
//
// A task is a panel of columns. Eight rows of the matrix are read side by side, so that the sums of a panel are loaded
// and stored once for eight; meanwhile the next eight are asked for. The sum of a column does not depend on the panels,
// nor on how many rows of x there are.
#include "level.h"

enum { SIDE_BY_SIDE = 8, X_ROWS = 4 };

// out[r][n] += sum of x[r][k] * w[k][n], for `depth` rows of the matrix from k on and the columns first .. last - 1.
INLINE void add_rows(const struct product *call, const int rows, const int depth, const float *restrict x, int64_t k,
                     int64_t first, int64_t last, float *restrict out) {
  const int64_t columns = call->columns;
  const float *restrict w = call->w + k * columns, *next = w + depth * columns;
  vec factors[X_ROWS][SIDE_BY_SIDE];
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int i = 0; i < depth; i++) factors[r][i] = splat(x[r * call->depth + k + i]);
  int64_t n = first;
  for (; n + LANES <= last; n += LANES) {
    vec even[X_ROWS], odd[X_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) even[r] = load(out + r * columns + n), odd[r] = (vec){0};
#pragma GCC unroll 8
    for (int i = 0; i < depth; i++) {
      vec weights = load(w + i * columns + n);
      if (n % 16 == 0) __builtin_prefetch(next + i * columns + n);
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++)
        if (i % 2)
          odd[r] += factors[r][i] * weights;
        else
          even[r] += factors[r][i] * weights;
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) store(out + r * columns + n, even[r] + odd[r]);
  }
  for (; n < last; n++)
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < depth; i++) out[r * columns + n] += x[r * call->depth + k + i] * w[i * columns + n];
}

INLINE void multiply_rows(const struct product *call, const int rows, int64_t row, int64_t first, int64_t last) {
  const float *x = call->x + row * call->depth;
  float *out = call->out + row * call->columns;
  for (int r = 0; r < rows; r++)
    for (int64_t n = first; n < last; n++)
      out[r * call->columns + n] = call->add ? call->add[(row + r) * call->add_row + n] : 0.0f;
  int64_t k = 0;
  for (; k + SIDE_BY_SIDE <= call->depth; k += SIDE_BY_SIDE) add_rows(call, rows, SIDE_BY_SIDE, x, k, first, last, out);
  for (; k < call->depth; k++) add_rows(call, rows, 1, x, k, first, last, out);
}

static void multiply_panel(const struct product *call, int64_t first, int64_t last) {
  int64_t row = 0;
  for (; row + 4 <= call->rows; row += 4) multiply_rows(call, 4, row, first, last);
  for (; row < call->rows; row++) multiply_rows(call, 1, row, first, last);
}

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
