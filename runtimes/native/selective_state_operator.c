// edgemem::SelectiveState: h = exp(dt A) h + dt B x, y = (C h + D x) silu(z); Mamba and Mamba-2.
// H heads of P rows, N numbers a row; G groups of heads share B and C. Mamba has heads of one row.
// Inputs: x [B, T, H P], dt [B, T, H], A [H, N] or [H], B and C [B, T, G N], state [B, H P, N];
// optional: D [H], bias of dt [H], z [B, T, H P]. Axes behind the second may be split: [B, T, H, P], [B, H, P, N].
// Attributes: softplus (of dt + bias), and then its bounds, least and most. Outputs: y, of x's shape; the new state.
#include <stdlib.h>

#include "operator.h"

#define NAME "edgemem::SelectiveState: "

struct selection {
  const struct kernels *const *levels;
  int64_t softplus;
  float least, most;
};

struct call {
  struct selective selective;
  const struct kernels *kernels;
};

static void one_task(void *data, size_t index) {
  const struct call *call = data;
  call->kernels->select_state(&call->selective, (int64_t)index);
}

enum { X, DT, A, B, C, STATE, D, BIAS, Z, INPUTS };

static OrtStatus *check(const struct tensor *given, struct selective *call, int64_t width) {
  const int64_t batch = call->batch, time = call->time, heads = call->heads, shared = call->groups * call->size;
  const int64_t wide[] = {batch, time, width}, narrow[] = {batch, time, heads}, common[] = {batch, time, shared};
  const int64_t state[] = {batch, width, call->size}, each[] = {heads, call->size};
  TRY(expect(&given[X], NAME, X, "x", ORT_FLOAT32, wide, 3));
  TRY(expect(&given[DT], NAME, DT, "dt", ORT_FLOAT32, narrow, 3));
  TRY(expect(&given[A], NAME, A, "A", ORT_FLOAT32, each, call->decay_of_each ? 2 : 1));
  TRY(expect(&given[B], NAME, B, "B", ORT_FLOAT32, common, 3));
  TRY(expect(&given[C], NAME, C, "C", ORT_FLOAT32, common, 3));
  TRY(expect(&given[STATE], NAME, STATE, "state", ORT_FLOAT32, state, 3));
  if (given[D].data) TRY(expect(&given[D], NAME, D, "D", ORT_FLOAT32, &heads, 1));
  if (given[BIAS].data) TRY(expect(&given[BIAS], NAME, BIAS, "bias", ORT_FLOAT32, &heads, 1));
  if (given[Z].data) TRY(expect(&given[Z], NAME, Z, "z", ORT_FLOAT32, wide, 3));
  return NULL;
}

// Sizes that the inputs have; check() compares them all.
static OrtStatus *sizes(const struct tensor *given, struct selective *call, int64_t width) {
  call->batch = given[X].dims[0], call->time = given[X].dims[1];
  call->heads = given[DT].rank == 3 ? given[DT].dims[2] : 0;
  call->size = given[STATE].rank == 3 ? given[STATE].dims[2] : 0;
  int64_t shared = given[B].rank == 3 ? given[B].dims[2] : 0;
  call->groups = call->size > 0 ? shared / call->size : 0;
  if (call->heads < 1 || width % call->heads || call->groups < 1 || call->heads % call->groups)
    return failure(NAME "%lld rows, %lld heads, and %lld numbers of B in a state of %lld: heads must divide the rows, "
                   "and groups of B the heads", (long long)width, (long long)call->heads, (long long)shared,
                   (long long)call->size);
  call->width = width / call->heads;
  call->decay_of_each = given[A].rank == 2;
  return NULL;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const struct selection *made = kernel;
  struct tensor given[INPUTS], x, state;
  struct call call = {.selective = {.softplus = made->softplus, .least = made->least, .most = made->most}};
  struct selective *selective = &call.selective;
  for (size_t i = 0; i < INPUTS; i++) TRY(read_if_given(context, i, &given[i]));
  x = given[X], state = given[STATE];
  join_axes(&given[X], 2), join_axes(&given[B], 2), join_axes(&given[C], 2), join_axes(&given[Z], 2);
  if (state.rank == 4) {
    given[STATE].dims[1] *= state.dims[2];
    given[STATE].dims[2] = state.dims[3];
    given[STATE].rank = 3;
  }
  if (given[X].rank != 3) return failure(NAME "x has %zu axes, and must be [B, T, H P]", x.rank);
  const int64_t width = given[X].dims[2];
  TRY(sizes(given, selective, width));
  TRY(check(given, selective, width));
  selective->x = given[X].data, selective->dt = given[DT].data, selective->a = given[A].data;
  selective->b = given[B].data, selective->c = given[C].data, selective->past = given[STATE].data;
  selective->d = given[D].data, selective->bias = given[BIAS].data, selective->z = given[Z].data;
  TRY(make_output(context, 0, x.dims, x.rank, (void **)&selective->y));
  TRY(make_output(context, 1, state.dims, state.rank, (void **)&selective->present));
  call.kernels = kernels_for(made->levels, selective->size, selective->size);
  return run_tasks(context, one_task, &call, selective->batch * ((width + BLOCK - 1) / BLOCK),
                   selective->batch * selective->time * width * selective->size * 4);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)op, (void)api;
  struct selection *made = malloc(sizeof *made);
  if (!made) return failure(NAME "no memory");
  made->levels = levels;
  OrtStatus *status = integer_attribute(info, "softplus", 0, 1, &made->softplus);
  if (!status) status = float_attribute(info, "least", &made->least);
  if (!status) status = float_attribute(info, "most", &made->most);
  if (status) free(made);
  *kernel = status ? NULL : made;
  return status;
}

static const char *name(const OrtCustomOp *op) { return op ? "SelectiveState" : NULL; }
static size_t inputs(const OrtCustomOp *op) { return op ? INPUTS : 0; }
static size_t outputs(const OrtCustomOp *op) { return op ? 2 : 0; }
static int input_is(const OrtCustomOp *op, size_t index) { return op && index > STATE ? ORT_OPTIONAL : ORT_REQUIRED; }
static int output_is(const OrtCustomOp *op, size_t index) { return op && index > 1 ? ORT_OPTIONAL : ORT_REQUIRED; }

const OrtCustomOp selective_state_operator = {
    OPERATOR_BASICS, .GetName = name, .GetInputType = is_float, .GetInputTypeCount = inputs, .GetOutputType = is_float,
    .GetOutputTypeCount = outputs, .GetInputCharacteristic = input_is, .GetOutputCharacteristic = output_is,
    .CreateKernelV2 = create, .KernelComputeV2 = compute, .KernelDestroy = free_kernel};
