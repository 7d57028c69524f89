// What operators of several stages are made of: a norm of all rows, and a product with a matrix.
#ifndef EDGEMEM_STAGES_H
#define EDGEMEM_STAGES_H

#include "operator.h"

struct rms_norm {
  const struct kernels *kernels;
  const float *x, *delta, *weight;  // delta: null, or what is added to x first
  float epsilon;
  float *out, *sum;                 // sum: null, or where x + delta goes
  int64_t width;
};

// Normalises `rows` rows.
OrtStatus *run_rms_norm(const OrtKernelContext *context, struct rms_norm *call, int64_t rows);

// The matrix of a product as input `index`: [depth, columns], or [columns, depth] where `product` is transposed. Its
// depth is given; the columns are found. Where there is an input `scale`, [depth / block, columns], the matrix has
// integers of 4 bits, and lies as [depth, columns].
OrtStatus *read_matrix(const OrtKernelContext *context, const char *owner, size_t index, const char *what, size_t scale,
                       struct product *product);

// What kernels with products keep of the session that they are made for.
struct engine {
  const struct kernels *kernels;
  int64_t threads;
  bool exact;
};
struct engine engine_of_session(void);

// Computes all columns of a product.
OrtStatus *run_product(const OrtKernelContext *context, const struct engine *engine, struct product *product);

// What is added to a product as an optional input: [columns], or [..., columns] as `dims` says.
OrtStatus *read_add(const OrtKernelContext *context, const char *owner, size_t index, const int64_t *dims, size_t rank,
                    struct product *product);

#endif
