// edgemem::GatedDelta: S = a S + k (b (v - k a S)), y = q S; a matrix for each of H heads.
// Inputs: q [B, T, Hk G K], k [B, T, Hk K], v [B, T, H V], g = log a [B, T, H] or [B, T, H, K], b [B, T, H],
// state [B, H, K, V]. The last axes of q, k and v may be split into heads. Hk divides H; G queries read each matrix.
// Without k and v, q is all three side by side. Without b, g has the logits of a and of b, [B, T, 2 H].
// Attributes: unit (1: q and k are divided by their lengths; 2: q after it was scaled), scale (of q).
// Outputs: y [B, T, H G V], or of v's shape where G is 1; the new state; b (v - k a S) [B, T, H V] (optional).
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

static OrtStatus *check_heads(const struct delta_rule *rule, int64_t queries) {
  const int64_t heads = rule->heads, keys = rule->keys;
  if (keys < 1 || keys > WIDTH_MAX || rule->key_heads < 1 || heads % rule->key_heads)
    return failure(NAME "%lld heads of v and %lld heads of %lld keys: heads of keys must divide those of v, and a head "
                   "has 1 to %d keys", (long long)heads, (long long)rule->key_heads, (long long)keys, WIDTH_MAX);
  if (rule->groups < 1 || queries != rule->key_heads * rule->groups * keys)
    return failure(NAME "%lld channels of q: %lld heads of %lld keys must divide them", (long long)queries,
                   (long long)rule->key_heads, (long long)keys);
  return NULL;
}

// q, k and v, each a tensor.
static OrtStatus *take_parts(const struct tensor *given, struct delta_rule *rule) {
  if (given[K].rank != 3 || given[Q].rank != 3)
    return failure(NAME "q has %zu axes and k %zu, and they must be [B, T, H K]", given[Q].rank, given[K].rank);
  rule->key_heads = rule->keys ? given[K].dims[2] / rule->keys : 0;
  rule->q_step = given[Q].dims[2], rule->k_step = given[K].dims[2], rule->v_step = rule->heads * rule->values;
  rule->groups = rule->k_step ? rule->q_step / rule->k_step : 0;
  TRY(check_heads(rule, rule->q_step));
  const int64_t query[] = {rule->batch, rule->time, rule->q_step}, key[] = {rule->batch, rule->time, rule->k_step};
  const int64_t value[] = {rule->batch, rule->time, rule->v_step};
  TRY(expect(&given[Q], NAME, Q, "q", ORT_FLOAT32, query, 3));
  TRY(expect(&given[K], NAME, K, "k", ORT_FLOAT32, key, 3));
  TRY(expect(&given[V], NAME, V, "v", ORT_FLOAT32, value, 3));
  rule->q = given[Q].data, rule->k = given[K].data, rule->v = given[V].data;
  return NULL;
}

// q, k and v side by side in one tensor.
static OrtStatus *take_joined(const struct tensor *given, struct delta_rule *rule) {
  TRY(expect(&given[Q], NAME, Q, "q", ORT_FLOAT32, given[Q].dims, 3));
  const int64_t all = given[Q].dims[2], pairs = rule->heads * (rule->keys + rule->values);
  rule->key_heads = rule->heads;
  rule->groups = all > pairs && rule->keys && rule->heads ? (all - pairs) / (rule->heads * rule->keys) : 0;
  TRY(check_heads(rule, all - pairs));
  rule->q_step = rule->k_step = rule->v_step = all;
  rule->q = given[Q].data, rule->k = rule->q + all - pairs, rule->v = rule->k + rule->heads * rule->keys;
  return NULL;
}

static OrtStatus *take_gates(const struct tensor *given, struct delta_rule *rule) {
  const bool logits = !given[BETA].data;
  const int64_t gate[] = {rule->batch, rule->time, rule->heads * (logits ? 2 : 1), rule->keys};
  rule->decay_of_each = !logits && given[G].rank == 4;
  TRY(expect(&given[G], NAME, G, "g", ORT_FLOAT32, gate, rule->decay_of_each ? 4 : 3));
  if (!logits) TRY(expect(&given[BETA], NAME, BETA, "b", ORT_FLOAT32, gate, 3));
  rule->g = given[G].data, rule->beta = given[BETA].data;
  return NULL;
}

static OrtStatus *check(const struct tensor *given, struct delta_rule *rule) {
  if (given[STATE].rank != 4 || given[Q].rank != 3)
    return failure(NAME "q has %zu axes and the state %zu, and they must be [B, T, H K] and [B, H, K, V]",
                   given[Q].rank, given[STATE].rank);
  rule->batch = given[Q].dims[0], rule->time = given[Q].dims[1], rule->heads = given[STATE].dims[1];
  rule->keys = given[STATE].dims[2], rule->values = given[STATE].dims[3];
  TRY(given[K].data || given[V].data ? take_parts(given, rule) : take_joined(given, rule));
  TRY(take_gates(given, rule));
  const int64_t state[] = {rule->batch, rule->heads, rule->keys, rule->values};
  rule->past = given[STATE].data;
  return expect(&given[STATE], NAME, STATE, "state", ORT_FLOAT32, state, 4);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct delta *made = kernel;
  struct tensor given[INPUTS], v;
  size_t outputs = 0;
  struct call call = {.rule = {.unit = made->unit, .scale = made->scale}};
  struct delta_rule *rule = &call.rule;
  for (size_t i = 0; i < INPUTS; i++) TRY(read_input(context, i, &given[i]));
  TRY(ort->KernelContext_GetOutputCount(context, &outputs));
  v = given[V];
  join_axes(&given[Q], 2), join_axes(&given[K], 2), join_axes(&given[V], 2);
  TRY(check(given, rule));
  const int64_t y[] = {rule->batch, rule->time, rule->heads * rule->groups * rule->values};
  const int64_t written[] = {rule->batch, rule->time, rule->heads * rule->values};
  const bool as_v = v.data && rule->groups == 1;
  TRY(make_output(context, 0, as_v ? v.dims : y, as_v ? v.rank : 3, (void **)&rule->y));
  TRY(make_output(context, 1, given[STATE].dims, 4, (void **)&rule->present));
  if (outputs > 2) TRY(make_output(context, 2, written, 3, (void **)&rule->written));
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
  OrtStatus *status = integer_attribute(info, "unit", 0, 2, &made->unit);
  if (!status) status = float_attribute(info, "scale", &made->scale);
  if (status) free(made);
  *kernel = status ? NULL : made;
  return status;
}

static const char *name(const OrtCustomOp *op) { return op ? "GatedDelta" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? INPUTS : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 3 : 0; }
static int input_is(const OrtCustomOp *op, size_t index) {
  return op && (index == K || index == V || index == BETA) ? ORT_OPTIONAL : ORT_REQUIRED;
}
static int output_is(const OrtCustomOp *op, size_t index) { return op && index > 1 ? ORT_OPTIONAL : ORT_REQUIRED; }

const OrtCustomOp gated_delta_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = is_float, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = input_is, .GetOutputCharacteristic = output_is,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = free_kernel};
