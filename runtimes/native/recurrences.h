// Calls of the operators that carry a state from step to step. All tensors are float32. B streams, T steps.
#ifndef EDGEMEM_RECURRENCES_H
#define EDGEMEM_RECURRENCES_H

#include <stdbool.h>
#include <stdint.h>

// Channels or rows that one task computes. No result depends on it.
enum { BLOCK = 64, COLUMN_VECTORS = 4 };  // COLUMN_VECTORS: of a matrix

// A causal convolution of each channel: y[t] = bias + the sum over k of weight[k] * x[t - K + 1 + k].
struct convolution {
  int64_t batch, time, channels, taps, slots;  // taps: K; slots: steps that the state holds, K - 1 or more
  bool silu;                                   // y * sigmoid(y)
  const float *x, *past, *weight, *bias;       // [B, T, C], [B, C, slots], [C, K], [C] or null
  float *y, *present;
};

// h = exp(dt A) h + dt B x, y = C h + D x, times silu(z): Mamba, and Mamba-2 with a decay for each head.
struct selective {
  int64_t batch, time, heads, width, groups, size;  // width: P rows of a head; size: N numbers of a row
  bool decay_of_each;                               // A is [H, N], else [H]
  bool softplus;                                    // of dt + bias
  float least, most;                                // bounds of dt
  const float *x, *dt, *a, *b, *c, *past;           // [B, T, H P], [B, T, H], A, [B, T, G N], the same, [B, H P, N]
  const float *d, *bias, *z;                        // [H], [H], [B, T, H P], or null
  float *y, *present;
};

// S = a S + k (b (v - k a S)), y = q S: the gated delta rule.
struct delta_rule {
  int64_t batch, time, heads, key_heads, keys, values;  // keys: K; values: V; heads: of v, one matrix each
  int64_t groups;                                       // queries that read one head's matrix
  int64_t q_step, k_step, v_step;                       // floats from one step to the next
  bool decay_of_each;                                   // g is [B, T, H, K], else [B, T, H]
  int64_t unit;                                         // 1: q and k are divided by their lengths; 2: q * scale is
  float scale;                                          // of queries
  const float *q, *k, *v, *g, *beta, *past;  // G Hk queries, Hk keys, H values, log a, b [B, T, H], [B, H, K, V]
  float *y, *present, *written;              // [B, T, H G, V], the state, what each step writes [B, T, H, V] or null
};                                           // beta may be null: g has the logits of a and of b, [B, T, 2 H]

// M = M + phi(k) v, z = z + phi(k), y = phi(q) M / (phi(q) z), phi(x) = elu(x) + 1: linear attention. The state holds
// the means of M and z, and what was lost in rounding them (Kahan).
struct linear_attention {
  int64_t batch, time, heads, groups, keys, values;  // groups: queries that read one head's matrix
  float scale;                                       // of queries, before phi
  const float *qkv;                                  // [B, T, H G K + H K + H V]
  const int64_t *position;                           // [B], of the first step
  const float *past[2];                              // mean and carry, [B, H, K, V + 1]: the last column is of z
  float *y, *present[2];                             // [B, T, H G V], the state
};

// RWKV's weighted average of values: a numerator and a denominator, both divided by exp(largest).
struct weighted_past {
  int64_t batch, time, channels;
  const float *decay, *first, *key, *value;  // log a = -exp(decay) [C]; weight of the newest [C]; [B, T, C], the same
  const float *past[3];                      // numerator, denominator, largest [B, C]
  float *y, *present[3];
};

#endif
