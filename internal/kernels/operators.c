// The functions of convolution.h as custom operators of ONNX Runtime's CPU provider.
#include "operators.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"
#include "convolution.h"
#include "inverted.h"
#include "microkernel.h"

#define DOMAIN "anomaly"

// The functions of ONNX Runtime's C API, looked up once.
static struct {
#define MEMBER(index, result, name, parameters) result(*name) parameters;
	ABI_FUNCTIONS(MEMBER)
#undef MEMBER
} ort;

// The scratch pool keeps freed blocks for later computations: at most as many as ran concurrently.
#define POOL_BLOCKS 64
typedef struct {
	size_t bytes;
	char room[];
} block;
static _Atomic(block *) scratch_pool[POOL_BLOCKS];

static void *scratch_alloc(size_t bytes) {
	block *b = NULL;
	for (int i = 0; i < POOL_BLOCKS && b == NULL; i++) b = atomic_exchange(&scratch_pool[i], NULL);
	if (b == NULL || b->bytes < bytes) {
		free(b);
		b = malloc(sizeof(block) + bytes);
		if (b == NULL) return NULL;
		b->bytes = bytes;
	}
	return b->room;
}

static void scratch_free(void *memory) {
	block *b = (block *)((char *)memory - offsetof(block, room));
	for (int i = 0; i < POOL_BLOCKS; i++) {
		block *none = NULL;
		if (atomic_compare_exchange_strong(&scratch_pool[i], &none, b)) return;
	}
	free(b);
}

// parallel_for runs the calls on ONNX Runtime's thread pool, one call per batch: with one batch per
// thread, ONNX Runtime's default, one thread waited for pieces at the end of an image.
static void parallel_for(const team *t, void (*f)(void *data, size_t i), size_t n, void *data) {
	OrtStatus *status = n > 1 ? ort.KernelContext_ParallelFor(t->context, f, n, n, data) : NULL;
	if (n == 1) f(data, 0);
	if (status == NULL) return;
	ort.ReleaseStatus(status); // it ran none of them
	for (size_t i = 0; i < n; i++) f(data, i);
}

// PIECES is the minimum number of pieces that inference operators are split into. Training operators
// run on one thread each.
#define PIECES 8

static team team_of(OrtKernelContext *context, long pieces) { return (team){parallel_for, context, pieces, scratch_alloc, scratch_free}; }

// kernel is an instance of an operator: its attributes.
typedef struct {
	window window;
	int rectify, fixed, residual; // fixed: the weights are constant
	weight_cache cache;
	float rates[5]; // Adam: β₁, 1−β₁, β₂, 1−β₂, ε; Normalize: mean, scale
} kernel;

// input is an operand. data is NULL for an omitted one.
typedef struct {
	float *data;
	size_t rank;
	int64_t dims[4];
} input;

static const char no_memory[] = "out of memory";

static OrtStatus *fail(const char *name, const char *why) {
	char message[160];
	snprintf(message, sizeof message, "%s: %s", name, why);
	return ort.CreateStatus(ABI_FAIL, message);
}

static OrtStatus *read_input(const char *name, OrtKernelContext *context, size_t index, input *in) {
	memset(in, 0, sizeof *in);
	size_t count = 0;
	OrtStatus *status = ort.KernelContext_GetInputCount(context, &count);
	if (status != NULL || index >= count) return status;
	const OrtValue *value = NULL;
	if ((status = ort.KernelContext_GetInput(context, index, &value)) != NULL || value == NULL) return status;
	OrtTensorTypeAndShapeInfo *info = NULL;
	if ((status = ort.GetTensorTypeAndShape(value, &info)) != NULL) return status;
	status = ort.GetDimensionsCount(info, &in->rank);
	if (status == NULL && in->rank > 4) status = fail(name, "an operand has more than four dimensions");
	if (status == NULL) status = ort.GetDimensions(info, in->dims, in->rank);
	ort.ReleaseTensorTypeAndShapeInfo(info);
	if (status != NULL) return status;
	return ort.GetTensorMutableData((OrtValue *)value, (void **)&in->data);
}

// read_images reads the first n operands, which must have four dimensions.
static OrtStatus *read_images(const char *name, OrtKernelContext *context, size_t n, input *in) {
	for (size_t i = 0; i < n; i++) {
		OrtStatus *status = read_input(name, context, i, &in[i]);
		if (status != NULL) return status;
		if (in[i].rank != 4) return fail(name, "an operand does not have four dimensions");
	}
	return NULL;
}

static OrtStatus *make_output(OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank, float **data) {
	OrtValue *value = NULL;
	OrtStatus *status = ort.KernelContext_GetOutput(context, index, dims, rank, &value);
	return status != NULL ? status : ort.GetTensorMutableData(value, (void **)data);
}

static int has_dims(const input *in, size_t rank, const int64_t *dims) {
	return in->data == NULL || (in->rank == rank && memcmp(in->dims, dims, rank * sizeof *dims) == 0);
}

static image image_of(float *data, const int64_t *dims) { return (image){data, dims[0], dims[1], dims[2], dims[3]}; }

// convolve computes a convolution or a transposed one: (image, kernel, bias, mask, version), of which
// the last three are optional.
static OrtStatus *convolve(const char *name, kernel *k, OrtKernelContext *context, int transposed) {
	input in[5];
	for (size_t i = 0; i < 5; i++) {
		OrtStatus *status = read_input(name, context, i, &in[i]);
		if (status != NULL) return status;
	}
	const int64_t *x = in[0].dims, *s = in[1].dims, stride = k->window.stride;
	if (in[0].data == NULL || in[0].rank != 4 || in[1].data == NULL || in[1].rank != 4 || s[2] != k->window.kernel || s[3] != s[2] ||
	    x[3] != s[transposed ? 0 : 1])
		return fail(name, "the kernel does not match the image");
	int64_t dims[4] = {x[0], transposed ? x[1] * stride : x[1] / stride, transposed ? x[2] * stride : x[2] / stride, s[transposed ? 1 : 0]};
	static const int64_t one = 1;
	if (!has_dims(&in[4], 1, &one)) return fail(name, "the version is not a scalar");
	if (!has_dims(&in[2], 1, &dims[3]) || !has_dims(&in[3], 4, dims)) return fail(name, "the bias or the mask does not match the result");
	image from = image_of(in[0].data, x), to = image_of(NULL, dims);
	if (!(transposed ? conv_fits(k->window, from, to) : conv_fits(k->window, to, from))) return fail(name, "the window does not match the image");
	OrtStatus *status = make_output(context, 0, dims, 4, &to.data);
	if (status != NULL) return status;
	epilogue f = {in[2].data, in[3].data, k->rectify};
	team t = team_of(context, k->fixed ? PIECES : 1);
	weight_cache *cache = k->fixed || in[4].data != NULL ? &k->cache : NULL;
	float version = in[4].data != NULL ? *in[4].data : 0;
	int done = transposed ? conv_transpose(&t, k->window, from, in[1].data, cache, version, f, to) : conv(&t, k->window, from, in[1].data, cache, version, f, to);
	return done ? NULL : fail(name, no_memory);
}

// compute_inverted computes an inverted residual block: (image, kernel and bias of the depthwise
// convolution, of the projection, and of the expansion, if there is one).
static OrtStatus *compute_inverted(void *op_kernel, OrtKernelContext *context) {
	kernel *k = op_kernel;
	const char *name = "InvertedResidual";
	input in[7];
	for (size_t i = 0; i < 7; i++) {
		OrtStatus *status = read_input(name, context, i, &in[i]);
		if (status != NULL) return status;
	}
	if (in[0].rank != 4 || in[3].rank != 4) return fail(name, "an image or a kernel does not have four dimensions");
	const int64_t *x = in[0].dims, hidden = in[1].dims[0], out = in[3].dims[0], side = k->window.kernel, stride = k->window.stride;
	const int64_t depthwise[] = {hidden, 1, side, side}, project[] = {out, hidden, 1, 1}, expand[] = {hidden, x[3], 1, 1};
	if (!has_dims(&in[1], 4, depthwise) || !has_dims(&in[2], 1, &hidden) || !has_dims(&in[3], 4, project) || !has_dims(&in[4], 1, &out) ||
	    !has_dims(&in[5], 4, expand) || !has_dims(&in[6], 1, &hidden) || (in[5].data == NULL) != (in[6].data == NULL))
		return fail(name, "the kernels do not match");
	inverted b = {k->window, x[3], hidden, out, in[5].data, in[6].data, in[1].data, in[2].data, in[3].data, in[4].data, k->residual};
	int64_t dims[4] = {x[0], x[1] / stride, x[2] / stride, out};
	image from = image_of(in[0].data, x), to = image_of(NULL, dims);
	if (!inverted_fits(&b, from, to)) return fail(name, "the block does not match the image");
	OrtStatus *status = make_output(context, 0, dims, 4, &to.data);
	if (status != NULL) return status;
	team t = team_of(context, k->fixed ? PIECES : 1);
	return inverted_residual(&t, &b, k->fixed ? &k->cache : NULL, from, to) ? NULL : fail(name, no_memory);
}

static OrtStatus *compute_conv(void *k, OrtKernelContext *context) { return convolve("Conv", k, context, 0); }

static OrtStatus *compute_conv_transpose(void *k, OrtKernelContext *context) { return convolve("ConvTranspose", k, context, 1); }

// compute_conv_weight_grad computes the gradient of the kernel: (small image, large image).
static OrtStatus *compute_conv_weight_grad(void *op_kernel, OrtKernelContext *context) {
	const kernel *k = op_kernel;
	const char *name = "ConvWeightGrad";
	input in[2];
	OrtStatus *status = read_images(name, context, 2, in);
	if (status != NULL) return status;
	image small = image_of(in[0].data, in[0].dims), large = image_of(in[1].data, in[1].dims);
	if (!conv_fits(k->window, small, large)) return fail(name, "the window does not match the images");
	int64_t dims[4] = {small.c, large.c, k->window.kernel, k->window.kernel};
	float *out;
	if ((status = make_output(context, 0, dims, 4, &out)) != NULL) return status;
	team t = team_of(context, 1);
	return conv_weight_grad(&t, k->window, small, large, out) ? NULL : fail(name, no_memory);
}

// compute_sum computes the gradient of a bias: the sum of each channel.
static OrtStatus *compute_sum(void *k, OrtKernelContext *context) {
	(void)k;
	input in;
	OrtStatus *status = read_images("ChannelSum", context, 1, &in);
	if (status != NULL) return status;
	float *out;
	if ((status = make_output(context, 0, &in.dims[3], 1, &out)) != NULL) return status;
	sum_channels(image_of(in.data, in.dims), out);
	return NULL;
}

// to_last converts N×C×H×W to N×H×W×C, and computes (x − mean)·scale.
static OrtStatus *to_last(const char *name, OrtKernelContext *context, float mean, float scale) {
	input in;
	OrtStatus *status = read_images(name, context, 1, &in);
	if (status != NULL) return status;
	int64_t dims[4] = {in.dims[0], in.dims[2], in.dims[3], in.dims[1]};
	float *out;
	if ((status = make_output(context, 0, dims, 4, &out)) != NULL) return status;
	team t = team_of(context, 1);
	channels_last(&t, in.data, mean, scale, image_of(out, dims));
	return NULL;
}

static OrtStatus *compute_last(void *k, OrtKernelContext *context) { return (void)k, to_last("ChannelsLast", context, 0, 1); }

static OrtStatus *compute_normalize(void *k, OrtKernelContext *context) {
	return to_last("Normalize", context, ((const kernel *)k)->rates[0], ((const kernel *)k)->rates[1]);
}

// compute_error computes the error of a reconstruction: (logits, image).
static OrtStatus *compute_error(void *k, OrtKernelContext *context) {
	(void)k;
	const char *name = "SigmoidMSE";
	input in[2];
	OrtStatus *status = read_images(name, context, 2, in);
	if (status != NULL) return status;
	if (!has_dims(&in[1], 4, in[0].dims)) return fail(name, "the images differ in shape");
	float *out;
	if ((status = make_output(context, 0, in[0].dims, 1, &out)) != NULL) return status;
	team t = team_of(context, 1);
	return sigmoid_mse(&t, image_of(in[0].data, in[0].dims), image_of(in[1].data, in[1].dims), out) ? NULL : fail(name, no_memory);
}

// compute_resize_concat resizes and concatenates images: (finest image, others…), N×C×H×W each.
static OrtStatus *compute_resize_concat(void *k, OrtKernelContext *context) {
	(void)k;
	const char *name = "ResizeConcat";
	size_t count = 0;
	OrtStatus *status = ort.KernelContext_GetInputCount(context, &count);
	if (status != NULL) return status;
	if (count > MAX_CONCAT) return fail(name, "too many images");
	image from[MAX_CONCAT], y = {0};
	for (size_t i = 0; i < count; i++) {
		input in;
		if ((status = read_input(name, context, i, &in)) != NULL) return status;
		if (in.rank != 4) return fail(name, "an operand does not have four dimensions");
		from[i] = (image){in.data, in.dims[0], in.dims[2], in.dims[3], in.dims[1]};
		if (i == 0) y = (image){NULL, in.dims[0], in.dims[2], in.dims[3], 0};
		y.c += in.dims[1];
	}
	if (!resize_concat_fits(from, count, y)) return fail(name, "the images cannot be concatenated");
	int64_t dims[4] = {y.n, y.h, y.w, y.c};
	if ((status = make_output(context, 0, dims, 4, &y.data)) != NULL) return status;
	team t = team_of(context, 1);
	return resize_concat(&t, from, count, y) ? NULL : fail(name, no_memory);
}

// update is an Adam step of one parameter.
#define PIECE 16384 // numbers of a piece
typedef struct {
	long n, gradient_count;
	float rates[7];
	const float *before[3], *gradients[MAX_MICRO_BATCHES];
	float *after[3];
} update;

static void update_piece(void *data, size_t piece) {
	const update *u = data;
	const microkernels *m = best_microkernels();
	long at = (long)piece * PIECE, n = u->n - at < PIECE ? u->n - at : PIECE;
	const float *gradients[MAX_MICRO_BATCHES], *before[3];
	float *after[3], few[(3 + 3 + 1) * MAX_LANES] = {0};
	for (long k = 0; k < u->gradient_count; k++) gradients[k] = u->gradients[k] + at;
	for (int i = 0; i < 3; i++) before[i] = u->before[i] + at, after[i] = u->after[i] + at;
	if (n >= m->lanes) {
		m->adam(n, u->rates, gradients, u->gradient_count, before, after);
		return;
	}
	// Fewer numbers than a vector: padded.
	for (int i = 0; i < 3; i++) {
		memcpy(few + i * MAX_LANES, before[i], (size_t)n * sizeof(float));
		before[i] = few + i * MAX_LANES;
		after[i] = few + (3 + i) * MAX_LANES;
	}
	float *sum = few + 6 * MAX_LANES;
	for (long k = 0; k < u->gradient_count; k++)
		for (long i = 0; i < n; i++) sum[i] += gradients[k][i];
	gradients[0] = sum;
	m->adam(m->lanes, u->rates, gradients, 1, before, after);
	for (int i = 0; i < 3; i++) memcpy(u->after[i] + at, after[i], (size_t)n * sizeof(float));
}

// compute_adam computes an Adam step: (step size, correction, parameter, first moment, second moment,
// gradients…), to the new parameter and moments.
static OrtStatus *compute_adam(void *op_kernel, OrtKernelContext *context) {
	const kernel *k = op_kernel;
	const char *name = "Adam";
	size_t count = 0;
	OrtStatus *status = ort.KernelContext_GetInputCount(context, &count);
	if (status != NULL) return status;
	if (count < 6 || count - 5 > MAX_MICRO_BATCHES) return fail(name, "the number of gradients is out of range");
	update u = {.n = 1, .gradient_count = (long)count - 5};
	input first = {0};
	for (size_t i = 0; i < count; i++) {
		input in;
		if ((status = read_input(name, context, i, &in)) != NULL) return status;
		if (i < 2) {
			if (in.rank > 1 || (in.rank == 1 && in.dims[0] != 1)) return fail(name, "a rate is not a scalar");
			u.rates[i] = *in.data;
			continue;
		}
		if (i == 2) {
			first = in;
			for (size_t d = 0; d < in.rank; d++) u.n *= in.dims[d];
		} else if (!has_dims(&in, first.rank, first.dims)) {
			return fail(name, "a moment or a gradient differs from the parameter in shape");
		}
		if (i < 5)
			u.before[i - 2] = in.data;
		else
			u.gradients[i - 5] = in.data;
	}
	memcpy(u.rates + 2, k->rates, sizeof k->rates);
	for (size_t i = 0; i < 3; i++)
		if ((status = make_output(context, i, first.dims, first.rank, &u.after[i])) != NULL) return status;
	size_t pieces = (size_t)((u.n + PIECE - 1) / PIECE);
	team t = team_of(context, 1);
	t.parallel_for(&t, update_piece, pieces, &u);
	return NULL;
}

// operator describes an operator. op is the first member, because ONNX Runtime's callbacks receive a
// pointer to it.
typedef struct {
	OrtCustomOp op;
	const char *name;
	size_t required, optional;
	int variadic;               // whether the last operand may be repeated
	size_t outputs;
	int window, rectify, residual; // which attributes it has; rectify and residual imply fixed
	const char *const *rates;      // names of float attributes, NULL-terminated
} operator;

static const char *op_name(const OrtCustomOp *op) { return ((const operator *)op)->name; }
static const char *op_provider(const OrtCustomOp *op) { return (void)op, (const char *)NULL; }
static int op_type(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, ABI_FLOAT; }
static size_t op_inputs(const OrtCustomOp *op) { return ((const operator *)op)->required + ((const operator *)op)->optional; }
static size_t op_outputs(const OrtCustomOp *op) { return ((const operator *)op)->outputs; }
static int op_input(const OrtCustomOp *op, size_t index) {
	const operator *o = (const operator *)op;
	if (o->variadic && index + 1 == o->required) return ABI_VARIADIC;
	return index < o->required ? ABI_REQUIRED : ABI_OPTIONAL;
}
static int op_output(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, ABI_REQUIRED; }
static int op_memory(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, 0; }
static int op_variadic(const OrtCustomOp *op) { return (void)op, 1; }
static void op_destroy(void *op_kernel) {
	kernel *k = op_kernel;
	pthread_mutex_destroy(&k->cache.lock);
	free(k->cache.weights);
	free(k);
}

static OrtStatus *op_create(const OrtCustomOp *op, OrtApi *api, const OrtKernelInfo *info, void **out) {
	(void)api;
	const operator *o = (const operator *)op;
	kernel *k = calloc(1, sizeof *k);
	if (k == NULL) return fail(o->name, no_memory);
	int64_t side = 0, stride = 0, padding = 0, rectify = 0, fixed = 0, residual = 0;
	OrtStatus *status = NULL;
	if (o->window) {
		status = ort.KernelInfoGetAttribute_int64(info, "kernel", &side);
		if (status == NULL) status = ort.KernelInfoGetAttribute_int64(info, "stride", &stride);
		if (status == NULL) status = ort.KernelInfoGetAttribute_int64(info, "padding", &padding);
	}
	if (status == NULL && o->rectify) status = ort.KernelInfoGetAttribute_int64(info, "rectify", &rectify);
	if (status == NULL && o->residual) status = ort.KernelInfoGetAttribute_int64(info, "residual", &residual);
	if (status == NULL && (o->rectify || o->residual)) status = ort.KernelInfoGetAttribute_int64(info, "fixed", &fixed);
	for (int i = 0; o->rates != NULL && status == NULL && o->rates[i] != NULL; i++)
		status = ort.KernelInfoGetAttribute_float(info, o->rates[i], &k->rates[i]);
	if (status != NULL) {
		free(k);
		return status;
	}
	pthread_mutex_init(&k->cache.lock, NULL);
	k->window = (window){side, stride, padding};
	k->rectify = (int)rectify;
	k->fixed = fixed != 0;
	k->residual = residual != 0;
	*out = k;
	return NULL;
}

#define OPERATOR(text, compute, ...) \
	{ \
		.op = {.version = OP_VERSION, .GetName = op_name, .GetExecutionProviderType = op_provider, .GetInputType = op_type, \
		       .GetInputTypeCount = op_inputs, .GetOutputType = op_type, .GetOutputTypeCount = op_outputs, .KernelDestroy = op_destroy, \
		       .GetInputCharacteristic = op_input, .GetOutputCharacteristic = op_output, .GetInputMemoryType = op_memory, \
		       .GetVariadicInputMinArity = op_variadic, .GetVariadicInputHomogeneity = op_variadic, \
		       .GetVariadicOutputMinArity = op_variadic, .GetVariadicOutputHomogeneity = op_variadic, .CreateKernelV2 = op_create, \
		       .KernelComputeV2 = compute}, \
		.name = text, __VA_ARGS__ \
	}

static const char *const adam_rates[] = {"beta1", "rest1", "beta2", "rest2", "epsilon", NULL};
static const char *const normalize_rates[] = {"mean", "scale", NULL};

static const operator operators[] = {
    OPERATOR("Conv", compute_conv, .required = 2, .optional = 3, .outputs = 1, .window = 1, .rectify = 1),
    OPERATOR("ConvTranspose", compute_conv_transpose, .required = 2, .optional = 3, .outputs = 1, .window = 1, .rectify = 1),
    OPERATOR("InvertedResidual", compute_inverted, .required = 5, .optional = 2, .outputs = 1, .window = 1, .residual = 1),
    OPERATOR("ConvWeightGrad", compute_conv_weight_grad, .required = 2, .outputs = 1, .window = 1),
    OPERATOR("ChannelSum", compute_sum, .required = 1, .outputs = 1),
    OPERATOR("ChannelsLast", compute_last, .required = 1, .outputs = 1),
    OPERATOR("Normalize", compute_normalize, .required = 1, .outputs = 1, .rates = normalize_rates),
    OPERATOR("SigmoidMSE", compute_error, .required = 2, .outputs = 1),
    OPERATOR("ResizeConcat", compute_resize_concat, .required = 1, .variadic = 1, .outputs = 1),
    OPERATOR("Adam", compute_adam, .required = 6, .variadic = 1, .outputs = 3, .rates = adam_rates),
};

// status_message returns a copy of a status's message, and releases the status.
static char *status_message(OrtStatus *status) {
	char *message = strdup(ort.GetErrorMessage(status));
	ort.ReleaseStatus(status);
	return message;
}

char *register_operators(void *entry, void *options) {
	// Calls are serialized; see Register.
	static OrtCustomOpDomain *domain;
	if (domain == NULL) {
		const OrtApiBase *(*base)(void) = (const OrtApiBase *(*)(void))entry;
		OrtApi *api = base()->GetApi(ABI_VERSION);
		if (api == NULL) return strdup("the library does not support this version of its API");
#define FIND(index, result, name, parameters) ort.name = (result(*) parameters)api[index];
		ABI_FUNCTIONS(FIND)
#undef FIND
		OrtCustomOpDomain *made = NULL;
		OrtStatus *status = ort.CreateCustomOpDomain(DOMAIN, &made);
		for (size_t i = 0; status == NULL && i < sizeof operators / sizeof *operators; i++)
			status = ort.CustomOpDomain_Add(made, &operators[i].op);
		if (status != NULL) return status_message(status);
		domain = made; // for the lifetime of the process
	}
	OrtStatus *status = ort.AddCustomOpDomain(options, domain);
	return status == NULL ? NULL : status_message(status);
}
