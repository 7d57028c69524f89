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
  const OrtCustomOp *operators[] = {&memory_attention_operator, &swiglu_operator, &rms_norm_operator};
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

OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  ort = base->GetApi(ORT_API_VERSION);
  if (!ort) {
    char text[160];
    snprintf(text, sizeof text, "edgemem's operators need ONNX Runtime 1.%d or newer, and this is %s", ORT_API_VERSION,
             base->GetVersionString());
    return base->GetApi(1)->CreateStatus(ORT_FAIL, text);
  }
  // A version that it does not have would make it complain on the terminal.
  ort_gives_references = atoi(base->GetVersionString() + 2) >= ORT_REFERENCE_VERSION;
  if (ort_gives_references) ort = base->GetApi(ORT_REFERENCE_VERSION);
  levels = available_kernels();
  if (!levels)
    return failure("EDGEMEM_NATIVE_LEVEL is %s, which is unknown or more than this processor has",
                   getenv("EDGEMEM_NATIVE_LEVEL"));
  OrtCustomOpDomain *domain = NULL;
  TRY(shared_domain(&domain));
  return ort->AddCustomOpDomain(options, domain);
}
