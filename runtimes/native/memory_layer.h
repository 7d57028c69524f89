// A layer's attributes, and what each kind of memory has: shared by the operator and the reading of its states.
#ifndef EDGEMEM_MEMORY_LAYER_H
#define EDGEMEM_MEMORY_LAYER_H

#include "operator.h"

enum { STATES_FROM = 8, LIST_MAX = 1024 };
#define NAME "edgemem::MemoryAttention: "

struct layer {
  const struct kernels *const *levels;
  int64_t heads, kv_heads, window, rotate, heads_first, rotary_start, neighbours, by_slot;
  float scale, softcap;
  int memories, summaries;
  struct memory memory[MEMORIES_MAX];  // kinds and options only
};

struct about_kind {
  const char *name;
  size_t states, parameters;
  bool is_summary;   // one slot, with a bias
  bool counts;       // may have the option log_count
  bool joins_pairs;  // keeps keys and values in one tensor
};

extern const struct about_kind about_kind[];

// Inputs and outputs must be as many as the list has states and parameters.
OrtStatus *check_counts(const OrtKernelContext *context, const struct layer *layer);

// Reads and makes the states of all memories; sizes and fixed inputs are known.
OrtStatus *read_states(OrtKernelContext *context, struct attention *call);

#endif
