// The softmax of queries over a run of slots, a tile of slots at a time.
//
// Few queries take the product with each key as it lies. Many share a transposed copy of the tile, so that the ring is
// read once for all of them. Values are weighed as they lie, for up to four queries at once.
#ifndef EDGEMEM_SLOTS_H
#define EDGEMEM_SLOTS_H

#include "queries.h"

enum { TILE = 256, TILE_FLOATS = 16384, ROWS = 4, PACK_FROM = 8, AHEAD = 4096 };
#if LANES == 16 || defined(__aarch64__)
enum { COLUMNS = 4 };  // vectors of columns for ROWS rows: 16 sums of 32 registers
#else
enum { COLUMNS = 2 };  // 8 of 16
#endif

// Slots that lie one after another. Slot s holds position first + s, and a query at position i sees those with
// i - reach < first + s <= i - lag.
struct segment {
  const void *k, *v;
  const float *k_scale, *v_scale;  // of each slot; null where the elements are floats
  enum element element;
  int64_t first, count, lag, reach;
  const float *q;  // the queries as these slots see them [count, D]
};

// A tile of a segment: `keys` is null, or holds the keys transposed, float32 [D, size].
struct tile {
  int64_t first, count, size;
  float *keys;
};

INLINE int64_t within(int64_t x, int64_t count) { return x < 0 ? 0 : x > count ? count : x; }

// The slots of a tile, counted from its first, that a query at a position sees.
INLINE void visible(const struct segment *segment, const struct tile *tile, int64_t position, int64_t *low,
                    int64_t *high) {
  int64_t first = segment->first + tile->first;
  *low = within(position - segment->reach + 1 - first, tile->count);
  *high = within(position - segment->lag + 1 - first, tile->count);
}

// Asks for what a loop over memory will want AHEAD bytes later: the processor's own prefetching stops at every page.
INLINE void prefetch(const void *data, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch((const char *)data + AHEAD + line, 0, 2);
}

// The same for the beginning of memory that comes next.
INLINE void prefetch_start(const void *data, int64_t bytes) {
  for (int64_t line = 0; line < bytes && line < AHEAD; line += 64) __builtin_prefetch((const char *)data + line, 0, 2);
}

// Products of `rows` queries [rows, D] with the keys low .. high - 1 of a tile: out[r * TILE + s]. `fixed` is the width
// where it is known. A few keys at a time meet all queries, while they are in the processor's first cache.
INLINE void dots_of(const int64_t fixed, int64_t any, int rows, const float *queries, const void *keys,
                    const enum element type, int64_t low, int64_t high, float *out) {
  const int64_t width = fixed ? fixed : any, full = width / LANES * LANES;
  int64_t s = low;
  for (; s + LANES <= high; s += LANES) {
    for (int r = 0; r < rows; r++) {
      const float *q = queries + r * width;
      vec products[LANES];
#pragma GCC unroll 16
      for (int j = 0; j < LANES; j++) {
        if (r == 0) prefetch(element(keys, type, (s + j) * width), width * element_bytes(type));
        products[j] = load(q) * load_elements(keys, type, (s + j) * width);
#pragma GCC unroll 8
        for (int64_t d = LANES; d < full; d += LANES)
          products[j] += load(q + d) * load_elements(keys, type, (s + j) * width + d);
      }
      store(out + r * TILE + s, sum_rows(products));
    }
  }
  for (int64_t rest = s; rest < high; rest++)
    for (int r = 0; r < rows; r++) {
      vec product = {0};
      for (int64_t d = 0; d < full; d += LANES)
        product += load(queries + r * width + d) * load_elements(keys, type, rest * width + d);
      out[r * TILE + rest] = sum(product);
    }
  for (s = low; s < high && full < width; s++)  // what does not fill a vector
    for (int r = 0; r < rows; r++)
      for (int64_t d = full; d < width; d++)
        out[r * TILE + s] += queries[r * width + d] * element_at(keys, type, s * width + d);
}

INLINE void dots_as(int64_t width, int rows, const float *q, const void *keys, const enum element type, int64_t low,
                    int64_t high, float *out) {
  if (width == 32)
    dots_of(32, 0, rows, q, keys, type, low, high, out);
  else if (width == 64)
    dots_of(64, 0, rows, q, keys, type, low, high, out);
  else if (width == 128)
    dots_of(128, 0, rows, q, keys, type, low, high, out);
  else if (width >= LANES)
    dots_of(0, width, rows, q, keys, type, low, high, out);
  else
    for (int64_t s = low; s < high; s++)
      for (int r = 0; r < rows; r++) {
        float product = 0;
        for (int64_t d = 0; d < width; d++) product += q[r * width + d] * element_at(keys, type, s * width + d);
        out[r * TILE + s] = product;
      }
}

static void dots(int64_t width, int rows, const float *q, const void *keys, enum element type, int64_t low,
                 int64_t high, float *out) {
  if (type == INT8)
    dots_as(width, rows, q, keys, INT8, low, high, out);
  else if (type == FLOAT16)
    dots_as(width, rows, q, keys, FLOAT16, low, high, out);
  else
    dots_as(width, rows, q, keys, FLOAT32, low, high, out);
}

// Writes the keys of a tile transposed: [D, size], zero beyond the last.
static void pack_keys(const struct tile *tile, const void *keys, const enum element type, int64_t width) {
  for (int64_t s = 0; s < tile->count; s += LANES) {
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) {
      vec rows[LANES];
#pragma GCC unroll 16
      for (int j = 0; j < LANES; j++)
        rows[j] = s + j < tile->count ? load_elements(keys, type, (s + j) * width + d) : (vec){0};
      transpose(rows);
#pragma GCC unroll 16
      for (int j = 0; j < LANES; j++) store(tile->keys + (d + j) * tile->size + s, rows[j]);
    }
    for (; d < width; d++)
      for (int j = 0; j < LANES; j++)
        tile->keys[d * tile->size + s + j] = s + j < tile->count ? element_at(keys, type, (s + j) * width + d) : 0.0f;
  }
}

// Scores of `rows` queries [rows, D] with `columns` vectors of slots, of which the first is `slot`.
INLINE void packed_scores(const int rows, const int columns, const float *q, int64_t width, const struct tile *tile,
                          int64_t slot, float *scores) {
  vec sums[ROWS][COLUMNS] = {{{0}}};
  for (int64_t d = 0; d < width; d++)
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) {
      vec key = load(tile->keys + d * tile->size + slot + c * LANES);
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) sums[r][c] += q[r * width + d] * key;
    }
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) store(scores + r * TILE + slot + c * LANES, sums[r][c]);
}

// Scores of `rows` queries with the slots low .. high - 1.
INLINE void scores_of(const int rows, const float *q, const struct attention *call, const struct segment *segment,
                      const struct tile *tile, int64_t low, int64_t high, float *scores) {
  if (!tile->keys) {
    const void *keys = element(segment->k, segment->element, tile->first * call->width);
    dots(call->width, rows, q, keys, segment->element, low, high, scores);
    return;
  }
  int64_t slot = low / LANES * LANES;
  for (; slot + (COLUMNS - 1) * LANES < high; slot += COLUMNS * LANES)
    packed_scores(rows, COLUMNS, q, call->width, tile, slot, scores);
  for (; slot + LANES < high; slot += 2 * LANES) packed_scores(rows, 2, q, call->width, tile, slot, scores);
  for (; slot < high; slot += LANES) packed_scores(rows, 1, q, call->width, tile, slot, scores);
}

// Turns one query's scores into weights over low .. high - 1, of which it sees those of its own range; 0 elsewhere.
// Returns what the sum over earlier slots is to be multiplied with.
static float weights_of(struct queries *queries, int r, const struct attention *call, float *scores, int64_t from,
                        int64_t to, int64_t low, int64_t high) {
  int64_t begin = low / LANES * LANES, end = (high + LANES - 1) / LANES * LANES;
  if (from == to) {  // sees nothing here
    memset(scores + low, 0, (size_t)(high - low) * sizeof(float));
    return 1.0f;
  }
  for (int64_t s = begin; s < from; s++) scores[s] = -INFINITY;
  for (int64_t s = to; s < end; s++) scores[s] = -INFINITY;
  if (call->softcap > 0)
    for (int64_t s = begin; s < end; s += LANES)
      store(scores + s, where(load(scores + s) == -INFINITY, load(scores + s),
                               call->softcap * vtanh(load(scores + s) / call->softcap)));
  vec most = splat(queries->top[r]);
  for (int64_t s = begin; s < end; s += LANES) most = larger(load(scores + s), most);
  float top = largest(most), kept = exp_of(queries->top[r] - top);
  vec total = {0};
  for (int64_t s = begin; s < end; s += LANES) {
    vec weight = vexp(load(scores + s) - top);
    store(scores + s, weight);
    total += weight;
  }
  queries->top[r] = top;
  queries->total[r] = queries->total[r] * kept + sum(total);
  return kept;
}

// read = read * kept + weights . values, for `columns` vectors of the values' width. `far`: they are in no cache yet.
INLINE void weigh_columns(const int rows, const int columns, const float *weights, const void *values,
                          const enum element type, int64_t width, int64_t column, int64_t low, int64_t high,
                          bool far, const float *kept, float *const *read) {
  vec sums[ROWS][8];
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++) sums[r][c] = kept[r] * load(read[r] + column + c * LANES);
  for (int64_t s = low; s < high; s++) {
    if (far) prefetch(element(values, type, s * width + column), columns * LANES * element_bytes(type));
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++) {
      vec value = load_elements(values, type, s * width + column + c * LANES);
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) sums[r][c] += weights[r * TILE + s] * value;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++) store(read[r] + column + c * LANES, sums[r][c]);
}

INLINE void weigh_as(const int rows, const float *weights, const void *values, const enum element type, int64_t width,
                     int64_t low, int64_t high, bool far, const float *kept, float *const *read) {
  const int most = rows == 1 ? 8 : rows == 2 ? 4 : COLUMNS;
  int64_t column = 0;
  for (; column + most * LANES <= width; column += most * LANES)
    weigh_columns(rows, most, weights, values, type, width, column, low, high, far, kept, read);
  if (most == 8 && column + 4 * LANES <= width) {
    weigh_columns(rows, 4, weights, values, type, width, column, low, high, far, kept, read);
    column += 4 * LANES;
  }
  for (; column + LANES <= width; column += LANES)
    weigh_columns(rows, 1, weights, values, type, width, column, low, high, far, kept, read);
  for (; column < width; column++)
    for (int r = 0; r < rows; r++) {
      float total = read[r][column] * kept[r];
      for (int64_t s = low; s < high; s++) total += weights[r * TILE + s] * element_at(values, type, s * width + column);
      read[r][column] = total;
    }
}

// Multiplies what belongs to the slots low .. high - 1 with their scales; null: these are 1.
static void scale_slots(float *x, const float *scale, int64_t low, int64_t high) {
  if (scale)
    for (int64_t s = low; s < high; s++) x[s] *= scale[s];
}

// One tile for `rows` queries from query r on.
INLINE void read_tile(const int rows, struct queries *queries, int r, const struct attention *call,
                      const struct segment *segment, const struct tile *tile) {
  float scores[ROWS * TILE] __attribute__((aligned(64))), kept[ROWS];
  int64_t from[ROWS], to[ROWS], low = tile->count, high = 0;
  for (int i = 0; i < rows; i++) {
    visible(segment, tile, queries->position[r + i], &from[i], &to[i]);
    if (from[i] >= to[i]) from[i] = to[i] = 0;
    if (from[i] < to[i] && from[i] < low) low = from[i];
    if (to[i] > high) high = to[i];
  }
  if (low >= high) return;
  const float *k_scale = segment->k_scale ? segment->k_scale + tile->first : NULL;
  const float *v_scale = segment->v_scale ? segment->v_scale + tile->first : NULL;
  const void *values = element(segment->v, segment->element, tile->first * call->value_width);
  if (!tile->keys)
    prefetch_start(element(values, segment->element, low * call->value_width),
                   (high - low) * call->value_width * element_bytes(segment->element));
  scores_of(rows, segment->q + r * call->width, call, segment, tile, low, high, scores);
  for (int i = 0; i < rows; i++) {
    if (from[i] < low) from[i] = to[i] = low;
    scale_slots(scores + i * TILE, k_scale, low, high);
    kept[i] = weights_of(queries, r + i, call, scores + i * TILE, from[i], to[i], low, high);
    scale_slots(scores + i * TILE, v_scale, low, high);
  }
  if (segment->element == INT8)
    weigh_as(rows, scores, values, INT8, call->value_width, low, high, !tile->keys, kept, queries->read + r);
  else if (segment->element == FLOAT16)
    weigh_as(rows, scores, values, FLOAT16, call->value_width, low, high, !tile->keys, kept, queries->read + r);
  else
    weigh_as(rows, scores, values, FLOAT32, call->value_width, low, high, !tile->keys, kept, queries->read + r);
}

static void read_tile_by_all(struct queries *queries, const struct attention *call, const struct segment *segment,
                             const struct tile *tile) {
  int r = 0;
  for (; r + 4 <= queries->count; r += 4) read_tile(4, queries, r, call, segment, tile);
  if (r + 2 <= queries->count) {
    read_tile(2, queries, r, call, segment, tile);
    r += 2;
  }
  if (r < queries->count) read_tile(1, queries, r, call, segment, tile);
}

static __attribute__((noinline)) void read_packed(struct queries *queries, const struct attention *call,
                                                  const struct segment *segment) {
  float keys[TILE_FLOATS] __attribute__((aligned(64)));
  struct tile tile = {.size = TILE_FLOATS / call->width / LANES * LANES, .keys = keys};
  if (tile.size > TILE) tile.size = TILE;
  for (; tile.first < segment->count; tile.first += tile.size) {
    tile.count = segment->count - tile.first < tile.size ? segment->count - tile.first : tile.size;
    const void *from = element(segment->k, segment->element, tile.first * call->width);
    if (segment->element == INT8)
      pack_keys(&tile, from, INT8, call->width);
    else if (segment->element == FLOAT16)
      pack_keys(&tile, from, FLOAT16, call->width);
    else
      pack_keys(&tile, from, FLOAT32, call->width);
    read_tile_by_all(queries, call, segment, &tile);
  }
}

// Adds the slots of a segment to query r alone.
static void read_alone(struct queries *queries, int r, const struct attention *call, const struct segment *segment) {
  struct tile tile = {.size = TILE};
  for (; tile.first < segment->count; tile.first += TILE) {
    tile.count = segment->count - tile.first < TILE ? segment->count - tile.first : TILE;
    read_tile(1, queries, r, call, segment, &tile);
  }
}

// Adds the slots of a segment to every query that sees them.
static void read_segment(struct queries *queries, const struct attention *call, const struct segment *segment) {
  if (queries->count >= PACK_FROM) {
    read_packed(queries, call, segment);
    return;
  }
  struct tile tile = {.size = TILE};
  for (; tile.first < segment->count; tile.first += TILE) {
    tile.count = segment->count - tile.first < TILE ? segment->count - tile.first : TILE;
    read_tile_by_all(queries, call, segment, &tile);
  }
}

#endif
