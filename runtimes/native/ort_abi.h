// The part of ONNX Runtime's C interface that the operators use.
//
// The interface is a table of function pointers to which each release only appends, so a function is known for ever by
// its place in the table. The table is asked for as version 20 has it (ONNX Runtime 1.20), and any later release gives it.
#ifndef EDGEMEM_ORT_ABI_H
#define EDGEMEM_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 20

typedef struct OrtStatus OrtStatus;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtValue OrtValue;
typedef struct OrtShape OrtShape;  // OrtTensorTypeAndShapeInfo

enum { ORT_REFERENCE_VERSION = 24 };
enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum { ORT_ANY = 0, ORT_FLOAT32 = 1, ORT_INT8 = 3, ORT_INT64 = 7, ORT_FLOAT16 = 10, ORT_INT4 = 22 };
enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1, ORT_VARIADIC = 2 };

typedef struct OrtCustomOp OrtCustomOp;

typedef struct OrtApi {
  OrtStatus *(*CreateStatus)(int code, const char *message);
  void *unused_1[25];
  OrtStatus *(*CreateCustomOpDomain)(const char *domain, OrtCustomOpDomain **out);
  OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const OrtCustomOp *op);
  OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain);
  void *unused_29[22];
  OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **out);
  void *unused_52[8];
  OrtStatus *(*GetTensorElementType)(const OrtShape *shape, int *out);
  OrtStatus *(*GetDimensionsCount)(const OrtShape *shape, size_t *out);
  OrtStatus *(*GetDimensions)(const OrtShape *shape, int64_t *out, size_t count);
  void *unused_63[2];
  OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtShape **out);
  void *unused_66[19];
  OrtStatus *(*KernelInfoGetAttribute_float)(const OrtKernelInfo *info, const char *name, float *out);
  OrtStatus *(*KernelInfoGetAttribute_int64)(const OrtKernelInfo *info, const char *name, int64_t *out);
  OrtStatus *(*KernelInfoGetAttribute_string)(const OrtKernelInfo *info, const char *name, char *out, size_t *size);
  OrtStatus *(*KernelContext_GetInputCount)(const OrtKernelContext *context, size_t *out);
  OrtStatus *(*KernelContext_GetOutputCount)(const OrtKernelContext *context, size_t *out);
  OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, size_t index, const OrtValue **out);
  OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank,
                                        OrtValue **out);
  void *unused_92[1];
  void (*ReleaseStatus)(OrtStatus *status);
  void *unused_94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtShape *shape);
  void *unused_100[1];
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain *domain);
  void *unused_102[172];
  OrtStatus *(*KernelContext_ParallelFor)(const OrtKernelContext *context, void (*task)(void *data, size_t index),
                                          size_t total, size_t batches, void *data);
  void *unused_275[139];
  // Since version 24 (ONNX Runtime 1.24): a shape without a copy of it.
  OrtStatus *(*GetTensorElementTypeAndShapeDataReference)(const OrtValue *value, int *type, const int64_t **dims,
                                                          size_t *rank);
} OrtApi;

#define ORT_PLACE(name, index) \
  _Static_assert(offsetof(OrtApi, name) == (index) * sizeof(void *), #name " is function " #index)
ORT_PLACE(CreateCustomOpDomain, 26);
ORT_PLACE(GetTensorMutableData, 51);
ORT_PLACE(GetTensorElementType, 60);
ORT_PLACE(GetTensorTypeAndShape, 65);
ORT_PLACE(KernelInfoGetAttribute_float, 85);
ORT_PLACE(KernelContext_GetOutput, 91);
ORT_PLACE(ReleaseStatus, 93);
ORT_PLACE(ReleaseTensorTypeAndShapeInfo, 99);
ORT_PLACE(ReleaseCustomOpDomain, 101);
ORT_PLACE(KernelContext_ParallelFor, 274);
ORT_PLACE(GetTensorElementTypeAndShapeDataReference, 414);

typedef struct OrtApiBase {
  const OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} OrtApiBase;

// Describes one operator. Fields that stay null are not called at this version.
struct OrtCustomOp {
  uint32_t version;
  void *(*CreateKernel)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info);
  const char *(*GetName)(const OrtCustomOp *op);
  const char *(*GetExecutionProviderType)(const OrtCustomOp *op);
  int (*GetInputType)(const OrtCustomOp *op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp *op);
  int (*GetOutputType)(const OrtCustomOp *op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp *op);
  void (*KernelCompute)(void *kernel, OrtKernelContext *context);
  void (*KernelDestroy)(void *kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp *op, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp *op, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp *op, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp *op);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp *op);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp *op);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *op);
  OrtStatus *(*CreateKernelV2)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel);
  OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
  OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *op, void *context);
  int (*GetStartVersion)(const OrtCustomOp *op);
  int (*GetEndVersion)(const OrtCustomOp *op);
  size_t (*GetMayInplace)(int **inputs, int **outputs);
  void (*ReleaseMayInplace)(int *inputs, int *outputs);
  size_t (*GetAliasMap)(int **inputs, int **outputs);
  void (*ReleaseAliasMap)(int *inputs, int *outputs);
};

#endif
