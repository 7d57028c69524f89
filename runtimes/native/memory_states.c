// The states of edgemem::MemoryAttention: which tensors each kind of memory has, and what shapes they must have.
#include "memory_layer.h"

const struct about_kind about_kind[] = {
    [WINDOW] = {"window", 2, 0, false, false, false},
    [SINKS] = {"sinks", 2, 0, false, false, false},
    [CUMULATIVE] = {"cumulative", 2, 0, true, true, true},
    [GEOMETRIC] = {"geometric", 2, 1, true, false, true},
    [GATED_AVERAGE] = {"gated_average", 2, 1, true, false, true},
    [MOVING_AVERAGE] = {"moving_average", 1, 0, true, true, true},
    [WEIGHTED_AVERAGE] = {"weighted_average", 1, 1, true, true, true},
    [COMPRESSED] = {"compressed", 2, 0, false, false, true},
    [EXACT] = {"exact", 2, 1, false, false, true},
};

// Where the next state is among inputs and outputs.
struct places {
  size_t input, output;
};

// Reads a state, and makes its output of `entries` slots in place of dims[2]; `dims` are those that it must have.
static OrtStatus *read_state(OrtKernelContext *context, struct places *places, const char *what, int type,
                             const int64_t dims[4], int64_t entries, const void **past, void **present) {
  struct tensor state;
  TRY(read_input(context, places->input, &state));
  TRY(expect(&state, NAME, places->input++, what, type, dims, 4));
  const int64_t made[4] = {dims[0], dims[1], entries, dims[3]};
  TRY(make_output(context, places->output, made, 4, present));
  if (!*present) return failure(NAME "output %zu (%s) is not connected", places->output, what);
  places->output++;
  *past = state.data;
  return NULL;
}

static const int ort_types[] = {[FLOAT32] = ORT_FLOAT32, [FLOAT16] = ORT_FLOAT16, [INT8] = ORT_INT8};

// State 0 or 1 of a memory of this many slots, [B, heads, slots, width], and its scales where it holds integers.
static OrtStatus *read_slots(OrtKernelContext *context, struct places *places, struct memory *memory, int state,
                             const char *const names[2], const int64_t dims[4], int64_t entries) {
  TRY(read_state(context, places, names[0], ort_types[memory->element], dims, entries, &memory->past[state],
                 &memory->present[state]));
  if (memory->element != INT8) return NULL;
  const int64_t scales[4] = {dims[0], dims[1], dims[2], 1};
  return read_state(context, places, names[1], ORT_FLOAT32, scales, entries, (const void **)&memory->past_scale[state],
                    (void **)&memory->present_scale[state]);
}

// The keys or the values of a window or of sinks.
static OrtStatus *read_part(OrtKernelContext *context, struct places *places, const struct attention *call,
                            struct memory *memory, int part) {
  static const char *const names[2][4] = {{"keys of the window", "scales of the window's keys",
                                           "values of the window", "scales of the window's values"},
                                          {"keys of sinks", "", "values of sinks", ""}};
  const char *const *name = names[memory->kind == SINKS] + 2 * part;
  int64_t entries = memory->kind == WINDOW ? call->time : memory->slots;
  const int64_t dims[4] = {call->batch, call->kv_heads, memory->slots, part ? call->value_width : call->width};
  return read_slots(context, places, memory, part, name, dims, entries);
}

static enum element element_of(const struct tensor *tensor) {
  return tensor->type == ORT_INT8 ? INT8 : tensor->type == ORT_FLOAT16 ? FLOAT16 : FLOAT32;
}

// Window and sinks: keys and values of one element type.
static OrtStatus *read_pairs(OrtKernelContext *context, struct places *places, const struct attention *call,
                             struct memory *memory) {
  struct tensor keys;
  TRY(read_input(context, places->input, &keys));
  bool is_window = memory->kind == WINDOW, is_int8 = keys.type == ORT_INT8 && is_window;
  if (!keys.data || keys.rank != 4 || (keys.type != ORT_FLOAT32 && keys.type != ORT_FLOAT16 && !is_int8))
    return failure(NAME "input %zu (keys of %s) must be float32%s or float16 [B, %lld, slots, %lld]", places->input,
                   is_window ? "the window" : "sinks", is_window ? ", int8" : "", (long long)call->kv_heads,
                   (long long)call->width);
  memory->element = element_of(&keys);
  memory->slots = is_window ? call->window : keys.dims[2];
  TRY(read_part(context, places, call, memory, 0));
  return read_part(context, places, call, memory, 1);
}

// A parameter of a memory, or what the layer computes for it.
static OrtStatus *read_parameter(OrtKernelContext *context, struct places *places, const char *what,
                                 const int64_t *dims, size_t rank, const float **data) {
  struct tensor tensor;
  TRY(read_input(context, places->input, &tensor));
  TRY(expect(&tensor, NAME, places->input++, what, ORT_FLOAT32, dims, rank));
  *data = tensor.data;
  return NULL;
}

// Cumulative, geometric and gated averages: one pair, and what belongs to it.
static OrtStatus *read_average(OrtKernelContext *context, struct places *places, const struct attention *call,
                               struct memory *memory) {
  const int64_t pair[4] = {call->batch, 2 * call->kv_heads, 1, call->width};
  if (memory->kind == CUMULATIVE) {
    TRY(read_state(context, places, "mean", ORT_FLOAT32, pair, 1, &memory->past[0], &memory->present[0]));
    return read_state(context, places, "carry", ORT_FLOAT32, pair, 1, &memory->past[1], &memory->present[1]);
  }
  const int64_t mass[4] = {call->batch, call->kv_heads, 1, 1}, gates[3] = {call->batch, call->time, call->kv_heads};
  TRY(read_state(context, places, "sum", ORT_FLOAT32, pair, 1, &memory->past[0], &memory->present[0]));
  TRY(read_state(context, places, "mass", ORT_FLOAT32, mass, 1, &memory->past[1], &memory->present[1]));
  return memory->kind == GEOMETRIC
             ? read_parameter(context, places, "log_decay", &call->kv_heads, 1, &memory->parameter)
             : read_parameter(context, places, "gate", gates, 3, &memory->parameter);
}

// Averages over a ring of pairs [B, 2H, W, D], of a length of its own.
static OrtStatus *read_ring_average(OrtKernelContext *context, struct places *places, const struct attention *call,
                                    struct memory *memory) {
  struct tensor pairs, beta;
  TRY(read_input(context, places->input, &pairs));
  memory->element = element_of(&pairs);
  if (!pairs.data || pairs.rank != 4 || pairs.dims[2] < 1 || pairs.type != ort_types[memory->element])
    return failure(NAME "input %zu (pairs) must be float32, int8 or float16 [B, %lld, slots, %lld]", places->input,
                   (long long)(2 * call->kv_heads), (long long)call->width);
  memory->slots = pairs.dims[2];
  const int64_t dims[4] = {call->batch, 2 * call->kv_heads, memory->slots, call->width};
  static const char *const names[2] = {"pairs", "scales of pairs"};
  TRY(read_slots(context, places, memory, 0, names, dims, call->time));
  if (memory->kind == MOVING_AVERAGE) return NULL;
  TRY(read_input(context, places->input, &beta));
  bool one_for_all = beta.data && beta.rank == 2 && beta.dims[0] == 1;
  const int64_t betas[2] = {one_for_all ? 1 : call->kv_heads, memory->slots};
  memory->parameter_head = one_for_all ? 0 : memory->slots;
  return read_parameter(context, places, "log_beta", betas, 2, &memory->parameter);
}

static OrtStatus *read_compressed(OrtKernelContext *context, struct places *places, const struct attention *call,
                                  struct memory *memory) {
  memory->slots = memory->shown + (call->window + memory->rate - 1) / memory->rate + 1;
  const int64_t slots[4] = {call->batch, 2 * call->kv_heads, memory->slots, call->width};
  const int64_t partial[4] = {call->batch, 2 * call->kv_heads, 1, call->width};
  TRY(read_state(context, places, "slots", ORT_FLOAT32, slots, memory->slots, &memory->past[0], &memory->present[0]));
  return read_state(context, places, "partial", ORT_FLOAT32, partial, 1, &memory->past[1], &memory->present[1]);
}

static OrtStatus *read_exact(OrtKernelContext *context, struct places *places, const struct attention *call,
                             struct memory *memory) {
  struct tensor slots;
  TRY(read_input(context, places->input, &slots));
  memory->slots = slots.rank == 4 ? slots.dims[2] : 1;
  const int64_t pairs[4] = {call->batch, 2 * call->kv_heads, memory->slots, call->width};
  const int64_t measures[4] = {call->batch, call->kv_heads, memory->slots, 1};
  const int64_t written[3] = {call->batch, call->time, call->kv_heads * call->width};
  TRY(read_state(context, places, "slots", ORT_FLOAT32, pairs, memory->slots, &memory->past[0], &memory->present[0]));
  TRY(read_state(context, places, "surprise", ORT_FLOAT32, measures, memory->slots, &memory->past[1],
                 &memory->present[1]));
  return read_parameter(context, places, "written", written, 3, &memory->parameter);
}

OrtStatus *check_counts(const OrtKernelContext *context, const struct layer *layer) {
  size_t inputs = 0, outputs = 0, wanted = STATES_FROM, states = 1;
  TRY(ort->KernelContext_GetInputCount(context, &inputs));
  TRY(ort->KernelContext_GetOutputCount(context, &outputs));
  for (int m = 0; m < layer->memories; m++) {
    const struct about_kind *about = &about_kind[layer->memory[m].kind];
    struct tensor first = {0};
    if (inputs > wanted) TRY(read_input(context, wanted, &first));
    size_t tensors = first.type == ORT_INT8 ? 2 * about->states : about->states;  // rings of integers have scales
    wanted += tensors + about->parameters;
    states += tensors;
  }
  if (inputs == wanted && outputs == states) return NULL;
  return failure(NAME "%zu inputs and %zu outputs; this list of memories has %zu and %zu", inputs, outputs, wanted, states);
}

OrtStatus *read_states(OrtKernelContext *context, struct attention *call) {
  struct places places = {STATES_FROM, 1};
  for (int m = 0; m < call->memories; m++) {
    struct memory *memory = &call->memory[m];
    switch (memory->kind) {
      case WINDOW:
      case SINKS: TRY(read_pairs(context, &places, call, memory)); break;
      case MOVING_AVERAGE:
      case WEIGHTED_AVERAGE: TRY(read_ring_average(context, &places, call, memory)); break;
      case COMPRESSED: TRY(read_compressed(context, &places, call, memory)); break;
      case EXACT: TRY(read_exact(context, &places, call, memory)); break;
      default: TRY(read_average(context, &places, call, memory));
    }
  }
  return NULL;
}

