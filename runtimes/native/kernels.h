// What an operator hands to the arithmetic, and the arithmetic of every instruction set.
#ifndef EDGEMEM_KERNELS_H
#define EDGEMEM_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "recurrences.h"

enum { MEMORIES_MAX = 16, WIDTH_MAX = 512, FEW_ROWS = 12 };

enum element { FLOAT32, FLOAT16, INT8 };
enum kind { WINDOW, SINKS, CUMULATIVE, GEOMETRIC, GATED_AVERAGE, MOVING_AVERAGE, WEIGHTED_AVERAGE, COMPRESSED, EXACT };

// One memory of the list: its states as they come in and as they go out, [B, heads, slots, width] each.
struct memory {
  enum kind kind;
  bool log_count;         // a summary's score gets the logarithm of the number of pairs that it stands for
  int64_t shown, rate;    // compressed: slots that a query sees, and pairs to a slot
  enum element element;   // of a window, of sinks or of a ring of pairs; the others are float32
  int64_t slots;          // of a window (W), of sinks (n), of a ring of pairs, of a compressed queue, of exact pairs
  // window, sinks: k, v; cumulative: mean, carry; geometric and gated: sum, mass; ring averages: pairs;
  // compressed: slots, partial; exact: slots, measure
  const void *past[2];
  void *present[2];            // the same; of rings only the T new entries
  const float *past_scale[2];  // of int8 rings: what each slot's integers are multiplied with, [B, heads, slots, 1]
  float *present_scale[2];
  // geometric: logarithm of the decay [H]; gated: logit of what is kept [B, T, H];
  // exact: what the layer's delta rule wrote [B, T, H D];
  // weighted: logarithm of the weight at each age [H or 1, slots], parameter_head floats from head to head
  const float *parameter;
  int64_t parameter_head;
};

// A tensor [B, T, heads, width] in any order of its axes; strides in floats.
struct strided {
  const float *data;
  int64_t row, time, head;
};

// One call of MemoryAttention. B streams, T steps, H key/value heads with G query heads each.
struct attention {
  int64_t batch, time, kv_heads, groups, width, value_width, window;
  float scale, softcap;
  struct strided q, k, v;
  const int64_t *position;     // [B], of the first query of each row
  bool rotate;                 // queries and keys come un-rotated: by tables if there are any, else by phases
  const int64_t *phases;       // [pairs], in 2^-31 of a turn for each position, or null
  int64_t pairs, rotary_start; // the pairs lie in `2 * pairs` elements of a head, from this one on
  bool neighbours;             // as (2f, 2f + 1), rather than (f, f + pairs)
  bool by_slot;                // sinks have positions by slot: needs phases
  const float *tables;         // cosines, then sines, of each row and step [B or 1, T, 2R], or null
  int64_t tables_row, turned;  // floats from one row to the next (0: all rows have the same), and R
  const float *sink_logits;    // [Hq] or null
  const float *bias;           // [S, Hq] or null
  int memories;
  struct memory memory[MEMORIES_MAX];
  float *read;                 // [B, T, Hq, Dv]
};

// One call of MatMul: out [rows, columns] = x [rows, depth] times w [depth, columns], plus add. Up to FEW_ROWS rows take
// as long as reading w takes.
struct product {
  int64_t rows, depth, columns, panel;  // panel: columns of one task
  bool transposed;                      // w is [columns, depth]
  const uint8_t *int4;                  // null, or instead of w: integers [depth, columns], two to a byte, the first low
  const float *scale;                   // theirs [depth / block, columns]
  int64_t block;                        // rows that share a scale
  bool exact;                           // with integers, x stays in floating point
  const float *x, *w, *add;             // add: null, or one row for all (add_row 0), or a row for each
  int64_t add_row;
  float *out;
};

// The arithmetic compiled for one instruction set.
struct kernels {
  const char *name;
  int lanes;  // floats in a vector
  // Everything of one row and one key/value head: task = row * H + head.
  void (*attend)(const struct attention *call, int64_t task);
  // silu(gate) * up for one row of `width`.
  void (*swiglu)(const float *gate, const float *up, float *out, int64_t width);
  // sum = x + delta (delta may be null, and so may sum); out = sum / sqrt(mean(sum^2) + epsilon) * weight.
  void (*rms_norm)(const float *x, const float *delta, const float *weight, float epsilon, float *out, float *sum,
                   int64_t width);
  // The columns of one panel.
  void (*multiply)(const struct product *call, int64_t task);
  void (*multiply_int4)(const struct product *call, int64_t task);
  // Channels, rows or columns of one stream, through all steps of the call.
  void (*convolve)(const struct convolution *call, int64_t task);
  void (*select_state)(const struct selective *call, int64_t task);
  void (*correct)(const struct delta_rule *call, int64_t task);
  void (*weigh)(const struct weighted_past *call, int64_t task);
  void (*attend_linearly)(const struct linear_attention *call, int64_t task);
};

extern const struct kernels kernels_avx512, kernels_avx2, kernels_sse2, kernels_neon;

// The sets to choose from, the widest first; null ends the list. Levels that the processor lacks are left out, and so
// are those wider than the one that EDGEMEM_NATIVE_LEVEL names. Null where that one is unknown or lacking.
const struct kernels *const *available_kernels(void);

// The widest set whose vectors fill both widths, else the narrowest.
const struct kernels *kernels_for(const struct kernels *const *levels, int64_t width, int64_t other_width);

#endif
