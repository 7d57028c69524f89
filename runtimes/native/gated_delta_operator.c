// edgemem::GatedDelta: S = a S + k (b (v - k a S)), y = q S; a matrix for each head.
// Inputs: q and k [B, T, Hk K], v [B, T, H V], g = log a [B, T, H] or [B, T, H, K], b [B, T, H], state [B, H, K, V].
// The last axes of q, k and v may be split into heads.
// Attributes: unit (divide q and k by their lengths), scale (of q). Outputs: y, of v's shape, and the new state.
#include <stdlib.h>

#include "operator.h"

#define NAME "edgemem::GatedDelta: "

struct delta {
  const struct kernels *const *levels;
  int64_t unit;
  float scale;
};

struct call {
  struct delta_rule rule;
  const struct kernels *kernels;
};

static void one_task(void *data, size_t index) {
  const struct call *call = data;
  call->kernels->correct(&call->rule, (int64_t)index);
}

enum { Q, K, V, G, BETA, STATE, INPUTS };

static OrtStatus *check(const struct tensor *given, struct delta_rule *rule) {
  if (given[STATE].rank != 4 || given[K].rank != 3)
    return failure(NAME "k has %zu axes and the state %zu, and they must be [B, T, H K] and [B, H, K, V]", given[K].rank,
                   given[STATE].rank);
  rule->batch = given[K].dims[0], rule->time = given[K].dims[1], rule->heads = given[STATE].dims[1];
  rule->keys = given[STATE].dims[2], rule->values = given[STATE].dims[3];
  rule->key_heads = rule->keys ? given[K].dims[2] / rule->keys : 0;
  const int64_t batch = rule->batch, time = rule->time, heads = rule->heads, keys = rule->keys;
  if (keys < 1 || keys > WIDTH_MAX || rule->key_heads < 1 || heads % rule->key_heads)
    return failure(NAME "%lld heads of v and %lld heads of %lld keys: heads of keys must divide those of v, and a head "
                   "has 1 to %d keys", (long long)heads, (long long)rule->key_heads, (long long)keys, WIDTH_MAX);
  const int64_t key[] = {batch, time, rule->key_heads * keys}, value[] = {batch, time, heads * rule->values};
  const int64_t gate[] = {batch, time, heads, keys}, state[] = {batch, heads, keys, rule->values};
  rule->decay_of_each = given[G].rank == 4;
  TRY(expect(&given[Q], NAME, Q, "q", ORT_FLOAT32, key, 3));
  TRY(expect(&given[K], NAME, K, "k", ORT_FLOAT32, key, 3));
  TRY(expect(&given[V], NAME, V, "v", ORT_FLOAT32, value, 3));
  TRY(expect(&given[G], NAME, G, "g", ORT_FLOAT32, gate, rule->decay_of_each ? 4 : 3));
  TRY(expect(&given[BETA], NAME, BETA, "b", ORT_FLOAT32, gate, 3));
  return expect(&given[STATE], NAME, STATE, "state", ORT_FLOAT32, state, 4);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct delta *made = kernel;
  struct tensor given[INPUTS], v;
  struct call call = {.rule = {.unit = made->unit, .scale = made->scale}};
  struct delta_rule *rule = &call.rule;
  for (size_t i = 0; i < INPUTS; i++) TRY(read_input(context, i, &given[i]));
  v = given[V];
  join_axes(&given[Q], 2), join_axes(&given[K], 2), join_axes(&given[V], 2);
  TRY(check(given, rule));
  rule->q = given[Q].data, rule->k = given[K].data, rule->v = given[V].data;
  rule->g = given[G].data, rule->beta = given[BETA].data, rule->past = given[STATE].data;
  TRY(make_output(context, 0, v.dims, v.rank, (void **)&rule->y));
  TRY(make_output(context, 1, given[STATE].dims, 4, (void **)&rule->present));
  call.kernels = kernels_for(made->levels, rule->values, rule->values);
  int64_t block = COLUMN_VECTORS * call.kernels->lanes, blocks = (rule->values + block - 1) / block;
  return run_tasks(context, one_task, &call, rule->batch * rule->heads * blocks,
                   rule->batch * rule->heads * rule->time * rule->keys * rule->values * 4);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api;
  struct delta *made = malloc(sizeof *made);
  if (!made) return failure(NAME "no memory");
  made->levels = levels;
  OrtStatus *status = integer_attribute(info, "unit", 0, 1, &made->unit);
  if (!status) status = float_attribute(info, "scale", &made->scale);
  if (status) free(made);
  *kernel = status ? NULL : made;
  return status;
}

static const char *name(const OrtCustomOp *op) { return op ? "GatedDelta" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? INPUTS : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 2 : 0; }
static int is_there(const OrtCustomOp *op, size_t index) { return op && index < INPUTS ? ORT_REQUIRED : ORT_OPTIONAL; }

const OrtCustomOp gated_delta_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = is_float, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = is_there, .GetOutputCharacteristic = is_there,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = free_kernel};
