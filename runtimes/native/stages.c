#include "stages.h"

static void norm_of_row(void *data, size_t row) {
  const struct rms_norm *call = data;
  int64_t first = (int64_t)row * call->width;
  call->kernels->rms_norm(call->x + first, call->delta ? call->delta + first : NULL, call->weight, call->epsilon,
                          call->out + first, call->sum ? call->sum + first : NULL, call->width);
}

OrtStatus *run_rms_norm(const OrtKernelContext *context, struct rms_norm *call, int64_t rows) {
  return run_tasks(context, norm_of_row, call, rows, rows * call->width * 4);
}

OrtStatus *read_matrix(const OrtKernelContext *context, const char *owner, size_t index, const char *what,
                       struct product *product) {
  struct tensor w;
  TRY(read_input(context, index, &w));
  product->columns = w.rank == 2 ? w.dims[!product->transposed] : 0;
  const int64_t as_is[2] = {product->depth, product->columns}, turned[2] = {product->columns, product->depth};
  product->w = w.data;
  return expect(&w, owner, index, what, ORT_FLOAT32, product->transposed ? turned : as_is, 2);
}

OrtStatus *read_add(const OrtKernelContext *context, const char *owner, size_t index, const int64_t *dims, size_t rank,
                    struct product *product) {
  struct tensor add;
  TRY(read_if_given(context, index, &add));
  product->add = add.data;
  if (!add.data) return NULL;
  bool one_row = add.rank == 1;
  product->add_row = one_row ? 0 : product->columns;
  return expect(&add, owner, index, "add", ORT_FLOAT32, one_row ? dims + rank - 1 : dims, one_row ? 1 : rank);
}

struct panels {
  const struct product *product;
  const struct kernels *kernels;
};

static void one_panel(void *data, size_t index) {
  const struct panels *panels = data;
  panels->kernels->multiply(panels->product, (int64_t)index);
}

// Of few rows a thread has one panel: the longer the pieces in which a matrix is read, the faster memory gives them. Of
// many rows a panel stays in the cache.
static int64_t panel_of(const struct product *product, int64_t threads) {
  if (product->rows > FEW_ROWS) return product->columns <= 512 ? 256 : 512;
  int64_t share = (product->columns + threads - 1) / threads;
  return share > 64 ? (share + 63) / 64 * 64 : 64;
}

OrtStatus *run_product(const OrtKernelContext *context, const struct kernels *kernels, int64_t threads,
                       struct product *product) {
  product->panel = panel_of(product, threads);
  struct panels panels = {product, kernels};
  int64_t count = (product->columns + product->panel - 1) / product->panel;
  return run_tasks(context, one_panel, &panels, count, product->rows * product->depth * product->columns);
}
