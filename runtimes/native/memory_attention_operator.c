// edgemem::MemoryAttention: checks what comes in, and hands each row and head to memory_attention.c.
//
// Inputs: 0 q, 1 k, 2 v, 3 position, 4 phases, 5 tables, 6 sink_logits, 7 bias, then the states of the memories in
// their order.
// Outputs: 0 the read [B, T, Hq * Dv], then the states, in the same order without the parameters among them.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory_layer.h"

struct call {
  struct attention attention;
  const struct kernels *kernels;
};

// --- attributes -----------------------------------------------------------------------------------------------------

// "cumulative", "cumulative:log_count", "compressed:<slots>:<rate>".
static OrtStatus *read_kind(char *text, struct memory *memory) {
  char *options = strchr(text, ':');
  if (options) *options++ = 0;
  for (int kind = WINDOW; kind <= EXACT; kind++) {
    if (strcmp(text, about_kind[kind].name) != 0) continue;
    memory->kind = (enum kind)kind;
    if (!options && kind != COMPRESSED) return NULL;
    if (kind == COMPRESSED) {
      long long shown = 0, rate = 0;
      char end = 0;
      if (options && sscanf(options, "%lld:%lld%c", &shown, &rate, &end) == 2 && shown > 0 && rate > 1 &&
          shown <= INT32_MAX && rate <= INT32_MAX) {
        memory->shown = shown, memory->rate = rate;
        return NULL;
      }
      return failure(NAME "a compressed memory is written 'compressed:<slots>:<rate>', with a rate of 2 or more");
    }
    memory->log_count = true;
    if (about_kind[kind].counts && strcmp(options, "log_count") == 0) return NULL;
    return failure(NAME "the memory '%s' has no option '%s'", text, options);
  }
  return failure(NAME "the memory '%s' is not known to this build", text);
}

static OrtStatus *read_memories(const OrtKernelInfo *info, struct layer *layer) {
  char text[LIST_MAX], *rest = text;
  size_t size = sizeof text;
  OrtStatus *status = ort->KernelInfoGetAttribute_string(info, "memories", text, &size);
  if (status) {
    ort->ReleaseStatus(status);
    return failure(NAME "the attribute memories is missing or longer than %d characters", LIST_MAX - 1);
  }
  for (char *kind; (kind = strsep(&rest, ",")) != NULL; layer->memories++) {
    if (layer->memories == MEMORIES_MAX) return failure(NAME "a list has at most %d memories", MEMORIES_MAX);
    struct memory *memory = &layer->memory[layer->memories];
    TRY(read_kind(kind, memory));
    if (memory->kind == WINDOW && layer->memories)
      return failure(NAME "a window must be the first memory of its list");
    layer->summaries += about_kind[memory->kind].is_summary;
  }
  return NULL;
}

static OrtStatus *read_attributes(const OrtKernelInfo *info, struct layer *layer) {
  TRY(read_memories(info, layer));
  TRY(integer_attribute(info, "heads", 1, 1 << 16, &layer->heads));
  TRY(integer_attribute(info, "kv_heads", 1, layer->heads, &layer->kv_heads));
  TRY(integer_attribute(info, "rotate", 0, 1, &layer->rotate));
  TRY(integer_attribute(info, "rotary_start", 0, WIDTH_MAX, &layer->rotary_start));
  TRY(integer_attribute(info, "neighbours", 0, 1, &layer->neighbours));
  TRY(integer_attribute(info, "by_slot", 0, 1, &layer->by_slot));
  TRY(integer_attribute(info, "heads_first", 0, 1, &layer->heads_first));
  TRY(integer_attribute(info, "window", layer->memory[0].kind == WINDOW, INT32_MAX, &layer->window));
  TRY(float_attribute(info, "scale", &layer->scale));
  TRY(float_attribute(info, "softcap", &layer->softcap));
  if (layer->heads % layer->kv_heads)
    return failure(NAME "%lld query heads cannot share %lld key/value heads", (long long)layer->heads,
                   (long long)layer->kv_heads);
  return NULL;
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api;
  struct layer *layer = calloc(1, sizeof *layer);
  if (!layer) return failure(NAME "no memory");
  layer->levels = levels;
  OrtStatus *status = read_attributes(info, layer);
  if (status) free(layer);
  *kernel = status ? NULL : layer;
  return status;
}

// --- queries, keys and values ---------------------------------------------------------------------------------------

static OrtStatus *read_packed(const struct layer *layer, const struct tensor *q, struct attention *call) {
  int64_t heads = layer->heads + 2 * layer->kv_heads;
  if (q->rank != 3 || q->dims[2] % heads || q->dims[2] == 0)
    return failure(NAME "input 0 (q) has %zu axes and a last one of %lld; it must be [B, T, %lld * D], the heads of "
                        "queries, keys and values one after another",
                   q->rank, (long long)(q->rank ? q->dims[q->rank - 1] : 0), (long long)heads);
  int64_t width = q->dims[2] / heads;
  call->batch = q->dims[0], call->time = q->dims[1], call->width = call->value_width = width;
  call->q = (struct strided){q->data, call->time * q->dims[2], q->dims[2], width};
  call->k = call->v = call->q;
  call->k.data += layer->heads * width;
  call->v.data += (layer->heads + layer->kv_heads) * width;
  return NULL;
}

static struct strided heads_first(const struct tensor *tensor) {
  int64_t head = tensor->dims[2] * tensor->dims[3];
  return (struct strided){tensor->data, tensor->dims[1] * head, tensor->dims[3], head};
}

static OrtStatus *read_heads_first(const OrtKernelContext *context, const struct layer *layer, const struct tensor *q,
                                   struct attention *call) {
  struct tensor k, v;
  TRY(read_input(context, 1, &k));
  TRY(read_input(context, 2, &v));
  if (q->rank != 4 || q->dims[1] != layer->heads)
    return failure(NAME "input 0 (q) has %zu axes and %lld heads; it must be [B, %lld, T, D]", q->rank,
                   (long long)(q->rank > 1 ? q->dims[1] : 0), (long long)layer->heads);
  int64_t dims[4] = {q->dims[0], layer->kv_heads, q->dims[2], q->dims[3]};
  TRY(expect(&k, NAME, 1, "k", ORT_FLOAT32, dims, 4));
  if (v.rank == 4) dims[3] = v.dims[3];
  TRY(expect(&v, NAME, 2, "v", ORT_FLOAT32, dims, 4));
  call->batch = q->dims[0], call->time = q->dims[2], call->width = q->dims[3], call->value_width = v.dims[3];
  call->q = heads_first(q), call->k = heads_first(&k), call->v = heads_first(&v);
  return NULL;
}

// A tensor [B, T, heads * width], or [B, T, heads, width].
static OrtStatus *read_steps_first(const OrtKernelContext *context, size_t index, const int64_t dims[2], int64_t heads,
                                   struct strided *strided, int64_t *width) {
  struct tensor tensor;
  TRY(read_input(context, index, &tensor));
  int64_t floats = tensor.rank == 3 ? tensor.dims[2] : tensor.rank == 4 ? tensor.dims[2] * tensor.dims[3] : 0;
  bool fits = floats > 0 && floats % heads == 0 && (tensor.rank == 3 || tensor.dims[2] == heads);
  if (!fits || tensor.type != ORT_FLOAT32 || tensor.dims[0] != dims[0] || tensor.dims[1] != dims[1])
    return failure(NAME "input %zu must be float32 [%lld, %lld, %lld * width], the heads one after another", index,
                   (long long)dims[0], (long long)dims[1], (long long)heads);
  *width = floats / heads;
  *strided = (struct strided){tensor.data, dims[1] * floats, floats, *width};
  return NULL;
}

static OrtStatus *read_apart(const OrtKernelContext *context, const struct layer *layer, const struct tensor *q,
                             struct attention *call) {
  int64_t width = 0;
  call->batch = q->dims[0], call->time = q->dims[1];
  TRY(read_steps_first(context, 0, q->dims, layer->heads, &call->q, &call->width));
  TRY(read_steps_first(context, 1, q->dims, layer->kv_heads, &call->k, &width));
  if (width != call->width)
    return failure(NAME "queries are %lld wide and keys %lld", (long long)call->width, (long long)width);
  return read_steps_first(context, 2, q->dims, layer->kv_heads, &call->v, &call->value_width);
}

static OrtStatus *read_queries(const OrtKernelContext *context, const struct layer *layer, struct attention *call) {
  struct tensor q, k;
  TRY(read_input(context, 0, &q));
  if (layer->heads_first) return read_heads_first(context, layer, &q, call);
  TRY(read_input(context, 1, &k));
  if (!k.data) return read_packed(layer, &q, call);
  if (q.rank < 2) return failure(NAME "input 0 (q) has %zu axes; it must be [B, T, %lld * D]", q.rank,
                                 (long long)layer->heads);
  return read_apart(context, layer, &q, call);
}

// How far each pair of a head turns from one position to the next.
static OrtStatus *read_phases(const OrtKernelContext *context, struct attention *call) {
  struct tensor tensor;
  TRY(read_input(context, 4, &tensor));
  if (!tensor.data) return NULL;
  int64_t pairs = tensor.rank == 1 ? tensor.dims[0] : 0;
  TRY(expect(&tensor, NAME, 4, "phases", ORT_INT64, &pairs, 1));
  if (call->rotary_start + 2 * pairs > call->width)
    return failure(NAME "input 4 (phases) has %lld pairs from element %lld on; heads are %lld wide", (long long)pairs,
                   (long long)call->rotary_start, (long long)call->width);
  call->phases = tensor.data, call->pairs = pairs;
  return NULL;
}

// The cosines and sines with which every step is rotated to its position.
static OrtStatus *read_tables(const OrtKernelContext *context, struct attention *call) {
  struct tensor tensor;
  TRY(read_input(context, 5, &tensor));
  if (!tensor.data) return NULL;
  int64_t rows = tensor.rank && tensor.dims[0] == 1 ? 1 : call->batch, floats = tensor.rank == 3 ? tensor.dims[2] : 4;
  const int64_t dims[3] = {rows, call->time, floats};
  TRY(expect(&tensor, NAME, 5, "tables", ORT_FLOAT32, dims, 3));
  if (floats % 4 || floats / 2 > call->width)
    return failure(NAME "input 5 (tables) has %lld cosines and sines a step; heads are %lld wide", (long long)floats,
                   (long long)call->width);
  call->tables = tensor.data, call->turned = floats / 2;
  call->tables_row = rows == 1 ? 0 : call->time * floats;
  return NULL;
}

static OrtStatus *read_rotation(const OrtKernelContext *context, struct attention *call) {
  TRY(read_phases(context, call));
  TRY(read_tables(context, call));
  if (call->rotate ? call->phases || call->tables : !call->tables) return NULL;
  return failure(NAME "rotate is %d and there are %s", call->rotate, call->rotate ? "neither phases nor tables" : "tables");
}

static OrtStatus *check_widths(const struct layer *layer, const struct attention *call) {
  const int64_t widths[2] = {call->width, call->value_width};
  for (int i = 0; i < 2; i++)
    if (widths[i] < 1 || widths[i] > WIDTH_MAX)
      return failure(NAME "heads are %lld wide; supported are 1 to %d", (long long)widths[i], WIDTH_MAX);
  for (int m = 0; m < layer->memories; m++)
    if (about_kind[layer->memory[m].kind].joins_pairs && call->value_width != call->width)
      return failure(NAME "keys are %lld wide and values %lld; the memory '%s' needs equal widths", (long long)call->width,
                     (long long)call->value_width, about_kind[layer->memory[m].kind].name);
  return NULL;
}

static OrtStatus *read_positions(const OrtKernelContext *context, struct attention *call) {
  struct tensor position;
  TRY(read_input(context, 3, &position));
  TRY(expect(&position, NAME, 3, "position", ORT_INT64, &call->batch, 1));
  call->position = position.data;
  for (int64_t row = 0; row < call->batch; row++)
    if (call->position[row] < 0 || call->position[row] > (int64_t)1 << 62)
      return failure(NAME "position %lld is not in 0 .. 2^62", (long long)call->position[row]);
  return NULL;
}

// An optional float input; null where it is absent.
static OrtStatus *read_optional(const OrtKernelContext *context, const char *owner, size_t index, const char *what,
                                const int64_t *dims, size_t rank, const float **data) {
  struct tensor tensor;
  TRY(read_input(context, index, &tensor));
  if (tensor.data) TRY(expect(&tensor, owner, index, what, ORT_FLOAT32, dims, rank));
  *data = tensor.data;
  return NULL;
}

static OrtStatus *read_fixed(const OrtKernelContext *context, const struct layer *layer, struct attention *call) {
  TRY(read_queries(context, layer, call));
  TRY(check_widths(layer, call));
  TRY(read_positions(context, call));
  TRY(read_rotation(context, call));
  const int64_t bias[2] = {layer->summaries, layer->heads};
  TRY(read_optional(context, NAME, 6, "sink_logits", &layer->heads, 1, &call->sink_logits));
  return read_optional(context, NAME, 7, "bias", bias, 2, &call->bias);
}

// --- the call -------------------------------------------------------------------------------------------------------

static void one_task(void *data, size_t index) {
  const struct call *call = data;
  call->kernels->attend(&call->attention, (int64_t)index);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct layer *layer = kernel;
  struct call call = {0};
  struct attention *attention = &call.attention;
  attention->kv_heads = layer->kv_heads, attention->groups = layer->heads / layer->kv_heads;
  attention->scale = layer->scale, attention->softcap = layer->softcap, attention->window = layer->window;
  attention->memories = layer->memories, attention->rotate = layer->rotate, attention->by_slot = layer->by_slot;
  attention->rotary_start = layer->rotary_start, attention->neighbours = layer->neighbours;
  memcpy(attention->memory, layer->memory, sizeof layer->memory);
  TRY(check_counts(context, layer));
  TRY(read_fixed(context, layer, attention));
  TRY(read_states(context, attention));
  const int64_t read[3] = {attention->batch, attention->time, layer->heads * attention->value_width};
  TRY(make_output(context, 0, read, 3, (void **)&attention->read));
  if (!attention->read) return failure(NAME "output 0 (the read) is not connected");
  call.kernels = kernels_for(layer->levels, attention->width, attention->value_width);
  int64_t work = attention->batch * attention->time * layer->heads * attention->width * 2;
  int64_t seen = attention->time + layer->window;
  return run_tasks(context, one_task, &call, attention->batch * layer->kv_heads, work * seen);
}

static const char *name(const OrtCustomOp *op) { return op ? "MemoryAttention" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? STATES_FROM + 1 : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 2 : 0; }

static int input_type(const OrtCustomOp *op, size_t index) {
  if (op && (index == 3 || index == 4)) return ORT_INT64;
  return index < STATES_FROM ? ORT_FLOAT32 : ORT_ANY;
}

static int output_type(const OrtCustomOp *op, size_t index) { return op && index == 0 ? ORT_FLOAT32 : ORT_ANY; }

static int input_is(const OrtCustomOp *op, size_t index) {
  if (op && (index == 0 || index == 3)) return ORT_REQUIRED;
  return index < STATES_FROM ? ORT_OPTIONAL : ORT_VARIADIC;
}

static int output_is(const OrtCustomOp *op, size_t index) { return op && index == 0 ? ORT_REQUIRED : ORT_VARIADIC; }

const OrtCustomOp memory_attention_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = input_type, .GetInputTypeCount = inputs,
    .GetOutputType = output_type, .GetOutputTypeCount = outputs, .GetInputCharacteristic = input_is,
    .GetOutputCharacteristic = output_is, .CreateKernelV2 = create, .KernelComputeV2 = compute,
    .KernelDestroy = free_kernel};
