// edgemem::LinearAttention: M = M + phi(k) v, z = z + phi(k), y = phi(q) M / (phi(q) z), with phi(x) = elu(x) + 1.
// Inputs: qkv [B, T, Hq K + H K + H V], position [B] of the first step, mean and carry [B, H, K, V + 1]: M and z over
// the number of steps so far, and what was lost in rounding them. Attribute: scale (of q). Outputs: y [B, T, Hq V],
// and the states.
#include <stdlib.h>

#include "operator.h"

#define NAME "edgemem::LinearAttention: "

struct attributes {
  const struct kernels *const *levels;
  float scale;
};

struct call {
  struct linear_attention attention;
  const struct kernels *kernels;
};

static void one_task(void *data, size_t index) {
  const struct call *call = data;
  call->kernels->attend_linearly(&call->attention, (int64_t)index);
}

enum { QKV, POSITION, MEAN, CARRY, INPUTS };

static OrtStatus *check(const struct tensor *given, struct linear_attention *call) {
  if (given[QKV].rank != 3 || given[MEAN].rank != 4)
    return failure(NAME "qkv has %zu axes and the mean %zu, and they must be [B, T, C] and [B, H, K, V + 1]",
                   given[QKV].rank, given[MEAN].rank);
  call->batch = given[QKV].dims[0], call->time = given[QKV].dims[1];
  call->heads = given[MEAN].dims[1], call->keys = given[MEAN].dims[2], call->values = given[MEAN].dims[3] - 1;
  const int64_t batch = call->batch, heads = call->heads, keys = call->keys, values = call->values;
  if (heads < 1 || values < 1 || keys < 1 || keys > WIDTH_MAX)
    return failure(NAME "a state of %lld heads of %lld keys and %lld values: a head has 1 to %d keys, and a value",
                   (long long)heads, (long long)keys, (long long)values, WIDTH_MAX);
  const int64_t queries = given[QKV].dims[2] - heads * (keys + values);
  call->groups = queries / (heads * keys);
  if (call->groups < 1 || queries % (heads * keys))
    return failure(NAME "qkv has %lld channels: queries for %lld heads of %lld keys, and the heads' keys and values "
                   "of %lld, do not fill them", (long long)given[QKV].dims[2], (long long)heads, (long long)keys,
                   (long long)values);
  const int64_t state[] = {batch, heads, keys, values + 1};
  TRY(expect(&given[QKV], NAME, QKV, "qkv", ORT_FLOAT32, given[QKV].dims, 3));
  TRY(expect(&given[POSITION], NAME, POSITION, "position", ORT_INT64, &batch, 1));
  TRY(expect(&given[MEAN], NAME, MEAN, "mean", ORT_FLOAT32, state, 4));
  return expect(&given[CARRY], NAME, CARRY, "carry", ORT_FLOAT32, state, 4);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct attributes *made = kernel;
  struct tensor given[INPUTS];
  struct call call = {.attention = {.scale = made->scale}};
  struct linear_attention *attention = &call.attention;
  for (size_t i = 0; i < INPUTS; i++) TRY(read_input(context, i, &given[i]));
  TRY(check(given, attention));
  attention->qkv = given[QKV].data, attention->position = given[POSITION].data;
  const int64_t y[] = {attention->batch, attention->time, attention->heads * attention->groups * attention->values};
  TRY(make_output(context, 0, y, 3, (void **)&attention->y));
  for (size_t i = 0; i < 2; i++) {
    attention->past[i] = given[MEAN + i].data;
    TRY(make_output(context, 1 + i, given[MEAN].dims, 4, (void **)&attention->present[i]));
  }
  call.kernels = kernels_for(made->levels, attention->values, attention->values);
  return run_tasks(context, one_task, &call, attention->batch * attention->heads,
                   attention->batch * attention->heads * attention->time * attention->keys * attention->values * 6);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api;
  struct attributes *made = malloc(sizeof *made);
  if (!made) return failure(NAME "no memory");
  made->levels = levels;
  OrtStatus *status = float_attribute(info, "scale", &made->scale);
  if (status) free(made);
  *kernel = status ? NULL : made;
  return status;
}

static const char *name(const OrtCustomOp *op) { return op ? "LinearAttention" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? INPUTS : 0; }
static int input_type(const OrtCustomOp *op, size_t index) {
  return op && index == POSITION ? ORT_INT64 : ORT_FLOAT32;
}
static size_t outputs(const OrtCustomOp *op) { return op ? 3 : 0; }
static int required(const OrtCustomOp *op, size_t index) { return op && index < INPUTS ? ORT_REQUIRED : ORT_OPTIONAL; }

const OrtCustomOp linear_attention_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = input_type, .GetInputTypeCount = inputs,
    .GetOutputType = is_float, .GetOutputTypeCount = outputs, .GetInputCharacteristic = required,
    .GetOutputCharacteristic = required, .CreateKernelV2 = create, .KernelComputeV2 = compute,
    .KernelDestroy = free_kernel};
