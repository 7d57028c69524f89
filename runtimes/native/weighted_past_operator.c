// edgemem::WeightedPast: RWKV's weighted average of the values so far, with a running maximum for stability.
// Inputs: decay [C] (the past's weight is multiplied by exp(-exp(decay)) a step), first [C] (the newest pair's key is
// larger by it), key and value [B, T, C], numerator, denominator and largest [B, C]. Outputs: y [B, T, C], and the states.
#include "operator.h"

#define NAME "edgemem::WeightedPast: "

struct call {
  struct weighted_past past;
  const struct kernels *kernels;
};

static void one_task(void *data, size_t index) {
  const struct call *call = data;
  call->kernels->weigh(&call->past, (int64_t)index);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  static const char *const names[] = {"decay", "first", "key", "value", "numerator", "denominator", "largest"};
  enum { DECAY, FIRST, KEY, VALUE, STATES, INPUTS = STATES + 3 };
  struct tensor given[INPUTS];
  for (size_t i = 0; i < INPUTS; i++) TRY(read_input(context, i, &given[i]));
  if (given[KEY].rank != 3) return failure(NAME "key has %zu axes, and must be [B, T, C]", given[KEY].rank);
  const int64_t *dims = given[KEY].dims, state[] = {dims[0], dims[2]};
  for (size_t i = 0; i < INPUTS; i++)
    TRY(expect(&given[i], NAME, i, names[i], ORT_FLOAT32, i < KEY ? dims + 2 : i < STATES ? dims : state,
               i < KEY ? 1 : i < STATES ? 3 : 2));
  struct call call = {{.batch = dims[0], .time = dims[1], .channels = dims[2], .decay = given[DECAY].data,
                       .first = given[FIRST].data, .key = given[KEY].data, .value = given[VALUE].data},
                      kernel};
  TRY(make_output(context, 0, dims, 3, (void **)&call.past.y));
  for (size_t i = 0; i < 3; i++) {
    call.past.past[i] = given[STATES + i].data;
    TRY(make_output(context, 1 + i, state, 2, (void **)&call.past.present[i]));
  }
  return run_tasks(context, one_task, &call, dims[0] * ((dims[2] + BLOCK - 1) / BLOCK),
                   dims[0] * dims[1] * dims[2] * 50);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api, (void)info;
  *kernel = (void *)levels[0];
  return NULL;
}

static const char *name(const OrtCustomOp *op) { return op ? "WeightedPast" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? 7 : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 4 : 0; }
static int is_there(const OrtCustomOp *op, size_t index) { return op && index < 7 ? ORT_REQUIRED : ORT_OPTIONAL; }

const OrtCustomOp weighted_past_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = is_float, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = is_there, .GetOutputCharacteristic = is_there,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = keep_kernel};
