// Names of one compilation. LEVEL is the instruction set, given to the compiler: avx512, avx2, sse2 or neon.
#ifndef EDGEMEM_LEVEL_H
#define EDGEMEM_LEVEL_H

#include "elements.h"
#include "kernels.h"
#include "vectors.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define LEVEL_NAME(name) JOIN(name, LEVEL)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

void LEVEL_NAME(attend)(const struct attention *call, int64_t task);
void LEVEL_NAME(swiglu)(const float *gate, const float *up, float *out, int64_t width);
void LEVEL_NAME(rms_norm)(const float *x, const float *delta, const float *weight, float epsilon, float *out, float *sum,
                          int64_t width);
void LEVEL_NAME(multiply)(const struct product *call, int64_t task);
void LEVEL_NAME(multiply_int4)(const struct product *call, int64_t task);
void LEVEL_NAME(convolve)(const struct convolution *call, int64_t task);
void LEVEL_NAME(select_state)(const struct selective *call, int64_t task);
void LEVEL_NAME(correct)(const struct delta_rule *call, int64_t task);
void LEVEL_NAME(weigh)(const struct weighted_past *call, int64_t task);
void LEVEL_NAME(attend_linearly)(const struct linear_attention *call, int64_t task);

#endif
