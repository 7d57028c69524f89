// Selective states (Gu and Dao 2023, equation 2; Dao and Gu 2024), compiled once for each instruction set.
//
// A block of LANES rows of the state goes through all steps of the call, so it stays in the cache. All rows of one
// block and step are reduced together: lane j is row j.
#include "level.h"
#include "partial.h"
#include "recurrences.h"

struct rows {
  const struct selective *call;
  int64_t row, first;             // the stream, and the first row of the block
  int count;                      // rows of the block, at most LANES
  int64_t head[LANES], from[LANES];  // of each row: its head, and where the B and C of its group begin
};

// A number of each row's head.
INLINE vec of_heads(const struct rows *rows, const float *values) {
  if (rows->call->width == 1) return load_some(values + rows->first, rows->count);
  float each[LANES] = {0};
  for (int j = 0; j < rows->count; j++) each[j] = values[rows->head[j]];
  return load(each);
}

INLINE vec step_sizes(const struct rows *rows, const float *dt) {
  const struct selective *call = rows->call;
  vec value = of_heads(rows, dt);
  if (call->bias) value += of_heads(rows, call->bias);
  if (call->softplus) value = vsoftplus(value);
  value = where(value < call->least, splat(call->least), value);
  return where(value > call->most, splat(call->most), value);
}

// Writes C h of each row, with D x and the gate.
INLINE void finish(const struct rows *rows, int64_t place, vec y) {
  const struct selective *call = rows->call;
  if (call->d) y += load_some(call->x + place, rows->count) * of_heads(rows, call->d);
  if (call->z) y *= vsilu(load_some(call->z + place, rows->count));
  store_some(call->y + place, y, rows->count);
}

// One step of LANES rows: the new state, and C h of each row. whole: a row fills its vectors.
INLINE vec advance(const struct rows *rows, const float *past, const float *b, const float *c, vec dt, vec x,
                   const bool decay_of_each, const bool whole) {
  const struct selective *call = rows->call;
  const int64_t size = call->size;
  float *present = call->present + (rows->row * call->heads * call->width + rows->first) * size;
  float drives[LANES], decays[LANES];
  vec reads[LANES];
  store(drives, dt * x);
  store(decays, decay_of_each ? dt : vexp(dt * of_heads(rows, call->a)));
  for (int j = rows->count; j < LANES; j++) reads[j] = (vec){0};
  for (int j = 0; j < rows->count; j++) {
    const float *from = past + j * size, *own_b = b + rows->from[j], *own_c = c + rows->from[j];
    const float *a = call->a + (decay_of_each ? rows->head[j] * size : 0);
    float *to = present + j * size, decay = decays[j], drive = drives[j];
    vec read = {0};
    for (int64_t n = 0; n < size; n += LANES) {
      int64_t left = whole ? LANES : size - n;
      vec kept = decay_of_each ? vexp(decay * load_some(a + n, left)) : splat(decay);
      vec h = kept * load_some(from + n, left) + drive * load_some(own_b + n, left);
      store_some(to + n, h, left);
      read += h * load_some(own_c + n, left);
    }
    reads[j] = read;
  }
  return sum_rows(reads);
}

// Step sizes times inputs, and decays (or step sizes, for a decay of each number), of LANES steps and rows.
struct tile {
  float drives[LANES][LANES], decays[LANES][LANES];  // [step][row]
};

// Rows `j` and on through `count` steps from step `t` on; their state stays in registers. Lane l of y[r] is step l.
INLINE void through_steps(const struct rows *rows, const struct tile *tile, const float *past, int64_t t, int count,
                          int j, const int many, const int vectors, const bool decay_of_each, vec *y) {
  const struct selective *call = rows->call;
  const int64_t size = call->size, shared = call->groups * size, step = rows->row * call->time + t;
  float *to = call->present + (rows->row * call->heads * call->width + rows->first + j) * size;
  const float *b = call->b + step * shared + rows->from[j], *c = call->c + step * shared + rows->from[j];
  vec h[2][8], reads[2][LANES];
  for (int r = 0; r < many; r++) {
    for (int n = 0; n < vectors; n++) h[r][n] = load(past + (j + r) * size + n * LANES);
    for (int s = count; s < LANES; s++) reads[r][s] = (vec){0};
  }
  for (int s = 0; s < count; s++, b += shared, c += shared) {
    vec read[2] = {{0}, {0}};
#pragma GCC unroll 8
    for (int n = 0; n < vectors; n++) {
      vec own_b = load(b + n * LANES), own_c = load(c + n * LANES);
#pragma GCC unroll 2
      for (int r = 0; r < many; r++) {
        float decay = tile->decays[s][j + r];
        vec kept = splat(decay);
        if (decay_of_each) kept = vexp(decay * load(call->a + rows->head[j + r] * size + n * LANES));
        h[r][n] = kept * h[r][n] + tile->drives[s][j + r] * own_b;
        read[r] += h[r][n] * own_c;
      }
    }
    for (int r = 0; r < many; r++) reads[r][s] = read[r];
  }
  for (int r = 0; r < many; r++) {
    for (int n = 0; n < vectors; n++) store(to + r * size + n * LANES, h[r][n]);
    y[r] = sum_rows(reads[r]);
  }
}

INLINE void one_tile(const struct rows *rows, const struct tile *tile, const float *past, int64_t t, int count,
                     const int vectors, const bool decay_of_each, vec *y) {
  int j = 0;
  for (; j + 2 <= rows->count; j += 2)
    if (rows->from[j] == rows->from[j + 1])
      through_steps(rows, tile, past, t, count, j, 2, vectors, decay_of_each, y + j);
    else
      for (int r = 0; r < 2; r++) through_steps(rows, tile, past, t, count, j + r, 1, vectors, decay_of_each, y + j + r);
  for (; j < rows->count; j++) through_steps(rows, tile, past, t, count, j, 1, vectors, decay_of_each, y + j);
  for (; j < LANES; j++) y[j] = (vec){0};
  transpose(y);
}

// The same as one_block, for a chunk and rows of a few whole vectors.
static void one_chunk(const struct rows *rows, int64_t vectors) {
  const struct selective *call = rows->call;
  const int64_t width = call->heads * call->width, state = (rows->row * width + rows->first) * call->size;
  const float *past = call->past + state;
  for (int64_t t = 0; t < call->time; t += LANES) {
    int count = (int)(call->time - t < LANES ? call->time - t : LANES);
    struct tile tile;
    vec y[LANES];
    for (int s = 0; s < count; s++) {
      int64_t step = rows->row * call->time + t + s;
      vec dt = step_sizes(rows, call->dt + step * call->heads);
      store(tile.drives[s], dt * load_some(call->x + step * width + rows->first, rows->count));
      store(tile.decays[s], call->decay_of_each ? dt : vexp(dt * of_heads(rows, call->a)));
    }
    if (call->decay_of_each && vectors == 1)
      one_tile(rows, &tile, past, t, count, 1, true, y);
    else if (vectors == 4)
      one_tile(rows, &tile, past, t, count, 4, false, y);
    else
      one_tile(rows, &tile, past, t, count, 8, false, y);
    for (int s = 0; s < count; s++)
      finish(rows, (rows->row * call->time + t + s) * width + rows->first, y[s]);
    past = call->present + state;
  }
}

INLINE void one_block(struct rows *rows, const bool decay_of_each, const bool whole) {
  const struct selective *call = rows->call;
  const int64_t width = call->heads * call->width, shared = call->groups * call->size;
  const float *past = call->past + (rows->row * width + rows->first) * call->size;
  for (int64_t t = 0; t < call->time; t++) {
    int64_t step = rows->row * call->time + t, place = step * width + rows->first;
    vec x = load_some(call->x + place, rows->count), dt = step_sizes(rows, call->dt + step * call->heads);
    vec y = advance(rows, past, call->b + step * shared, call->c + step * shared, dt, x, decay_of_each,
                    whole);
    finish(rows, place, y);
    past = call->present + (rows->row * width + rows->first) * call->size;
  }
}

void LEVEL_NAME(select_state)(const struct selective *call, int64_t task) {
  int64_t width = call->heads * call->width, blocks = (width + BLOCK - 1) / BLOCK;
  int64_t first = task % blocks * BLOCK, last = first + BLOCK < width ? first + BLOCK : width;
  for (; first < last; first += LANES) {
    struct rows rows = {.call = call, .row = task / blocks, .first = first};
    rows.count = (int)(last - first < LANES ? last - first : LANES);
    for (int j = 0; j < rows.count; j++) {
      rows.head[j] = (first + j) / call->width;
      rows.from[j] = rows.head[j] / (call->heads / call->groups) * call->size;
    }
    bool whole = call->size % LANES == 0;
    int64_t vectors = call->size / LANES;
    if (call->time > 1 && whole && (call->decay_of_each ? vectors == 1 : vectors == 4 || vectors == 8))
      one_chunk(&rows, vectors);
    else if (call->decay_of_each && whole)
      one_block(&rows, true, true);
    else if (call->decay_of_each)
      one_block(&rows, true, false);
    else if (whole)
      one_block(&rows, false, true);
    else
      one_block(&rows, false, false);
  }
}
