// What ONNX Runtime calls as it loads the library: registers the operators of the domain "edgemem".
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "operator.h"

__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                                                    const OrtApiBase *base);

// Sessions refer to the domain for as long as they live, so there is one for all, and it is never released.
static OrtStatus *shared_domain(OrtCustomOpDomain **domain) {
  static _Atomic(OrtCustomOpDomain *) shared;
  *domain = atomic_load(&shared);
  if (*domain) return NULL;
  const OrtCustomOp *operators[] = {
      &memory_attention_operator, &swiglu_operator, &rms_norm_operator, &matmul_operator, &norm_matmul_operator,
      &gated_mlp_operator, &causal_conv_operator, &selective_state_operator, &gated_delta_operator,
      &weighted_past_operator, &linear_attention_operator};
  TRY(ort->CreateCustomOpDomain("edgemem", domain));
  for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
    TRY(ort->CustomOpDomain_Add(*domain, operators[i]));
  OrtCustomOpDomain *earlier = NULL;
  if (!atomic_compare_exchange_strong(&shared, &earlier, *domain)) {  // another thread was first
    ort->ReleaseCustomOpDomain(*domain);
    *domain = earlier;
  }
  return NULL;
}

static OrtStatus *too_old(const OrtApiBase *base) {
  char text[160];
  snprintf(text, sizeof text, "edgemem's operators need ONNX Runtime 1.%d or newer, and this is %s", ORT_API_VERSION,
           base->GetVersionString());
  return base->GetApi(1)->CreateStatus(ORT_FAIL, text);
}

OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  // Asked for a version that it does not have, it complains on the terminal. Its versions are 1.<version>.<patch>.
  int version = atoi(base->GetVersionString() + 2);
  if (version < ORT_API_VERSION) return too_old(base);
  ort_gives_references = version >= ORT_REFERENCE_VERSION;
  ort = base->GetApi(ort_gives_references ? ORT_REFERENCE_VERSION : ORT_API_VERSION);
  if (!ort) return too_old(base);
  levels = available_kernels();
  if (!levels)
    return failure("EDGEMEM_NATIVE_LEVEL is %s, which is unknown or more than this processor has",
                   getenv("EDGEMEM_NATIVE_LEVEL"));
  OrtCustomOpDomain *domain = NULL;
  TRY(shared_domain(&domain));
  return ort->AddCustomOpDomain(options, domain);
}
