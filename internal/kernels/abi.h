// The part of ONNX Runtime's C API that this package uses; the packages with its library do not
// include the header. The API is a table of functions at fixed indices, to which releases only
// append. A test compares the indices and the layout of OrtCustomOp with the header that
// onnxruntime_go includes.
#ifndef ANOMALY_ABI_H
#define ANOMALY_ABI_H

#include <stddef.h>
#include <stdint.h>

// ABI_VERSION is the version of the API that these functions belong to (1.17). OP_VERSION is the
// version of OrtCustomOp: the first whose callbacks can return an error (1.16).
#define ABI_VERSION 17
#define OP_VERSION 16

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;

typedef void (*abi_function)(void);
typedef const abi_function OrtApi;

typedef struct {
	OrtApi *(*GetApi)(uint32_t version);
	const char *(*GetVersionString)(void);
} OrtApiBase;

// ABI_FUNCTIONS lists the functions used: index, result, name and parameters.
#define ABI_FUNCTIONS(F) \
	F(0, OrtStatus *, CreateStatus, (int code, const char *message)) \
	F(2, const char *, GetErrorMessage, (const OrtStatus *status)) \
	F(26, OrtStatus *, CreateCustomOpDomain, (const char *domain, OrtCustomOpDomain **out)) \
	F(27, OrtStatus *, CustomOpDomain_Add, (OrtCustomOpDomain *domain, const struct OrtCustomOp *op)) \
	F(28, OrtStatus *, AddCustomOpDomain, (OrtSessionOptions *options, OrtCustomOpDomain *domain)) \
	F(51, OrtStatus *, GetTensorMutableData, (OrtValue *value, void **out)) \
	F(61, OrtStatus *, GetDimensionsCount, (const OrtTensorTypeAndShapeInfo *info, size_t *out)) \
	F(62, OrtStatus *, GetDimensions, (const OrtTensorTypeAndShapeInfo *info, int64_t *values, size_t length)) \
	F(65, OrtStatus *, GetTensorTypeAndShape, (const OrtValue *value, OrtTensorTypeAndShapeInfo **out)) \
	F(85, OrtStatus *, KernelInfoGetAttribute_float, (const OrtKernelInfo *info, const char *name, float *out)) \
	F(86, OrtStatus *, KernelInfoGetAttribute_int64, (const OrtKernelInfo *info, const char *name, int64_t *out)) \
	F(88, OrtStatus *, KernelContext_GetInputCount, (const OrtKernelContext *context, size_t *out)) \
	F(90, OrtStatus *, KernelContext_GetInput, (const OrtKernelContext *context, size_t index, const OrtValue **out)) \
	F(91, OrtStatus *, KernelContext_GetOutput, (OrtKernelContext *context, size_t index, const int64_t *dims, size_t count, OrtValue **out)) \
	F(93, void, ReleaseStatus, (OrtStatus *status)) \
	F(99, void, ReleaseTensorTypeAndShapeInfo, (OrtTensorTypeAndShapeInfo *info)) \
	F(274, OrtStatus *, KernelContext_ParallelFor, \
	  (const OrtKernelContext *context, void (*each)(void *data, size_t i), size_t total, size_t batches, void *data))

enum { ABI_FAIL = 1 };           // OrtErrorCode
enum { ABI_FLOAT = 1 };          // ONNXTensorElementDataType
enum { ABI_REQUIRED, ABI_OPTIONAL, ABI_VARIADIC }; // OrtCustomOpInputOutputCharacteristic

// OrtCustomOp describes an operator, up to the members of OP_VERSION.
typedef struct OrtCustomOp {
	uint32_t version;
	void *(*CreateKernel)(const struct OrtCustomOp *op, OrtApi *api, const OrtKernelInfo *info);
	const char *(*GetName)(const struct OrtCustomOp *op);
	const char *(*GetExecutionProviderType)(const struct OrtCustomOp *op);
	int (*GetInputType)(const struct OrtCustomOp *op, size_t index);
	size_t (*GetInputTypeCount)(const struct OrtCustomOp *op);
	int (*GetOutputType)(const struct OrtCustomOp *op, size_t index);
	size_t (*GetOutputTypeCount)(const struct OrtCustomOp *op);
	void (*KernelCompute)(void *kernel, OrtKernelContext *context);
	void (*KernelDestroy)(void *kernel);
	int (*GetInputCharacteristic)(const struct OrtCustomOp *op, size_t index);
	int (*GetOutputCharacteristic)(const struct OrtCustomOp *op, size_t index);
	int (*GetInputMemoryType)(const struct OrtCustomOp *op, size_t index);
	int (*GetVariadicInputMinArity)(const struct OrtCustomOp *op);
	int (*GetVariadicInputHomogeneity)(const struct OrtCustomOp *op);
	int (*GetVariadicOutputMinArity)(const struct OrtCustomOp *op);
	int (*GetVariadicOutputHomogeneity)(const struct OrtCustomOp *op);
	OrtStatus *(*CreateKernelV2)(const struct OrtCustomOp *op, OrtApi *api, const OrtKernelInfo *info, void **kernel);
	OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
} OrtCustomOp;

#endif
