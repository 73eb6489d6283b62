// The computations of convolution.h as operators of ONNX Runtime's processor provider.
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

// The functions of the interface, found once.
static struct {
#define MEMBER(place, result, name, parameters) result(*name) parameters;
	ABI_FUNCTIONS(MEMBER)
#undef MEMBER
} ort;

// Scratch memory stays for the next computation that needs as much: as many blocks as
// computations ran at once.
#define SPARES 64
typedef struct {
	size_t bytes;
	char room[];
} block;
static _Atomic(block *) spares[SPARES];

static void *borrow(size_t bytes) {
	block *b = NULL;
	for (int i = 0; i < SPARES && b == NULL; i++) b = atomic_exchange(&spares[i], NULL);
	if (b == NULL || b->bytes < bytes) {
		free(b);
		b = malloc(sizeof(block) + bytes);
		if (b == NULL) return NULL;
		b->bytes = bytes;
	}
	return b->room;
}

static void give_back(void *memory) {
	block *b = (block *)((char *)memory - offsetof(block, room));
	for (int i = 0; i < SPARES; i++) {
		block *none = NULL;
		if (atomic_compare_exchange_strong(&spares[i], &none, b)) return;
	}
	free(b);
}

// each has ONNX Runtime's threads take the calls, one by one: cut into as many batches as there
// are threads, as it does by itself, the pieces at an image's end made one thread wait.
static void each(const team *t, void (*f)(void *data, size_t i), size_t n, void *data) {
	OrtStatus *status = n > 1 ? ort.KernelContext_ParallelFor(t->context, f, n, n, data) : NULL;
	if (n == 1) f(data, 0);
	if (status == NULL) return;
	ort.ReleaseStatus(status); // it took none of them
	for (size_t i = 0; i < n; i++) f(data, i);
}

// PIECES is how many pieces a verdict's operators have for the threads. A training's are
// computed by one thread each.
#define PIECES 8

static team team_of(OrtKernelContext *context, long pieces) { return (team){each, context, pieces, borrow, give_back}; }

// kernel is an operator of a graph: its attributes.
typedef struct {
	window window;
	int rectify, fixed, residual; // fixed: the kernel never changes
	kept kept;
	float rates[5]; // of Adam: β₁, 1−β₁, β₂, 1−β₂, ε; of Normalize: mean, scale
} kernel;

// input is an operand. One that was left out has no data.
typedef struct {
	float *data;
	size_t rank;
	int64_t dims[4];
} input;

static const char no_memory[] = "no memory is left";

static OrtStatus *refuse(const char *name, const char *why) {
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
	if (status == NULL && in->rank > 4) status = refuse(name, "an operand has more than four dimensions");
	if (status == NULL) status = ort.GetDimensions(info, in->dims, in->rank);
	ort.ReleaseTensorTypeAndShapeInfo(info);
	if (status != NULL) return status;
	return ort.GetTensorMutableData((OrtValue *)value, (void **)&in->data);
}

// read_images reads the first n operands, which must be images.
static OrtStatus *read_images(const char *name, OrtKernelContext *context, size_t n, input *in) {
	for (size_t i = 0; i < n; i++) {
		OrtStatus *status = read_input(name, context, i, &in[i]);
		if (status != NULL) return status;
		if (in[i].rank != 4) return refuse(name, "an operand is no image");
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

// convolve computes an image from the other: (image, kernel, bias, mask, version), the
// last three as they are wanted.
static OrtStatus *convolve(const char *name, kernel *k, OrtKernelContext *context, int upwards) {
	input in[5];
	for (size_t i = 0; i < 5; i++) {
		OrtStatus *status = read_input(name, context, i, &in[i]);
		if (status != NULL) return status;
	}
	const int64_t *x = in[0].dims, *s = in[1].dims, step = k->window.stride;
	if (in[0].data == NULL || in[0].rank != 4 || in[1].data == NULL || in[1].rank != 4 || s[2] != k->window.kernel || s[3] != s[2] ||
	    x[3] != s[upwards ? 0 : 1])
		return refuse(name, "the kernel does not take the image");
	int64_t dims[4] = {x[0], upwards ? x[1] * step : x[1] / step, upwards ? x[2] * step : x[2] / step, s[upwards ? 1 : 0]};
	static const int64_t one = 1;
	if (!has_dims(&in[4], 1, &one)) return refuse(name, "the version is no single number");
	if (!has_dims(&in[2], 1, &dims[3]) || !has_dims(&in[3], 4, dims)) return refuse(name, "bias or mask are not of the result's shape");
	image from = image_of(in[0].data, x), to = image_of(NULL, dims);
	if (!(upwards ? fits(k->window, from, to) : fits(k->window, to, from))) return refuse(name, "the kernel's geometry does not take the image");
	OrtStatus *status = make_output(context, 0, dims, 4, &to.data);
	if (status != NULL) return status;
	finish f = {in[2].data, in[3].data, k->rectify};
	team t = team_of(context, k->fixed ? PIECES : 1);
	kept *keep = k->fixed || in[4].data != NULL ? &k->kept : NULL;
	float version = in[4].data != NULL ? *in[4].data : 0;
	int done = upwards ? up(&t, k->window, from, in[1].data, keep, version, f, to) : down(&t, k->window, from, in[1].data, keep, version, f, to);
	return done ? NULL : refuse(name, no_memory);
}

// compute_inverted is an inverted residual block: (image, kernel and bias of the depthwise
// convolution, of the one that leads back, and of the one that expands, if there is one).
static OrtStatus *compute_inverted(void *op_kernel, OrtKernelContext *context) {
	kernel *k = op_kernel;
	const char *name = "InvertedResidual";
	input in[7];
	for (size_t i = 0; i < 7; i++) {
		OrtStatus *status = read_input(name, context, i, &in[i]);
		if (status != NULL) return status;
	}
	if (in[0].rank != 4 || in[3].rank != 4) return refuse(name, "an operand is no image or no kernel");
	const int64_t *x = in[0].dims, hidden = in[1].dims[0], out = in[3].dims[0], side = k->window.kernel, step = k->window.stride;
	const int64_t depthwise[] = {hidden, 1, side, side}, project[] = {out, hidden, 1, 1}, expand[] = {hidden, x[3], 1, 1};
	if (!has_dims(&in[1], 4, depthwise) || !has_dims(&in[2], 1, &hidden) || !has_dims(&in[3], 4, project) || !has_dims(&in[4], 1, &out) ||
	    !has_dims(&in[5], 4, expand) || !has_dims(&in[6], 1, &hidden) || (in[5].data == NULL) != (in[6].data == NULL))
		return refuse(name, "the kernels do not belong together");
	inverted b = {k->window, x[3], hidden, out, in[5].data, in[6].data, in[1].data, in[2].data, in[3].data, in[4].data, k->residual};
	int64_t dims[4] = {x[0], x[1] / step, x[2] / step, out};
	image from = image_of(in[0].data, x), to = image_of(NULL, dims);
	if (!inverts(&b, from, to)) return refuse(name, "the block does not take the image");
	OrtStatus *status = make_output(context, 0, dims, 4, &to.data);
	if (status != NULL) return status;
	team t = team_of(context, k->fixed ? PIECES : 1);
	return inverted_residual(&t, &b, k->fixed ? &k->kept : NULL, from, to) ? NULL : refuse(name, no_memory);
}

static OrtStatus *compute_down(void *k, OrtKernelContext *context) { return convolve("Down", k, context, 0); }

static OrtStatus *compute_up(void *k, OrtKernelContext *context) { return convolve("Up", k, context, 1); }

// compute_correlate is the kernel's derivative: (small image, large image).
static OrtStatus *compute_correlate(void *op_kernel, OrtKernelContext *context) {
	const kernel *k = op_kernel;
	const char *name = "Correlate";
	input in[2];
	OrtStatus *status = read_images(name, context, 2, in);
	if (status != NULL) return status;
	image small = image_of(in[0].data, in[0].dims), large = image_of(in[1].data, in[1].dims);
	if (!fits(k->window, small, large)) return refuse(name, "the kernel's geometry does not take the images");
	int64_t dims[4] = {small.c, large.c, k->window.kernel, k->window.kernel};
	float *out;
	if ((status = make_output(context, 0, dims, 4, &out)) != NULL) return status;
	team t = team_of(context, 1);
	return correlate(&t, k->window, small, large, out) ? NULL : refuse(name, no_memory);
}

// compute_sum is a bias's derivative: the sum of each channel.
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

// to_last brings an image of N×C×H×W to N×H×W×C, less the mean and times the scale.
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

// compute_error compares sigmoids with an image: (before the sigmoid, image).
static OrtStatus *compute_error(void *k, OrtKernelContext *context) {
	(void)k;
	const char *name = "SigmoidMSE";
	input in[2];
	OrtStatus *status = read_images(name, context, 2, in);
	if (status != NULL) return status;
	if (!has_dims(&in[1], 4, in[0].dims)) return refuse(name, "the images are not of one shape");
	float *out;
	if ((status = make_output(context, 0, in[0].dims, 1, &out)) != NULL) return status;
	team t = team_of(context, 1);
	return sigmoid_mse(&t, image_of(in[0].data, in[0].dims), image_of(in[1].data, in[1].dims), out) ? NULL : refuse(name, no_memory);
}

// compute_join enlarges images and joins them: (finest image, others), N×C×P×P each.
static OrtStatus *compute_join(void *k, OrtKernelContext *context) {
	(void)k;
	const char *name = "EnlargeJoin";
	size_t count = 0;
	OrtStatus *status = ort.KernelContext_GetInputCount(context, &count);
	if (status != NULL) return status;
	if (count > MAX_JOINED) return refuse(name, "there are too many images");
	image from[MAX_JOINED], y = {0};
	for (size_t i = 0; i < count; i++) {
		input in;
		if ((status = read_input(name, context, i, &in)) != NULL) return status;
		if (in.rank != 4) return refuse(name, "an operand is no image");
		from[i] = (image){in.data, in.dims[0], in.dims[2], in.dims[3], in.dims[1]};
		if (i == 0) y = (image){NULL, in.dims[0], in.dims[2], in.dims[3], 0};
		y.c += in.dims[1];
	}
	if (!joins(from, count, y)) return refuse(name, "the images do not fit over each other");
	int64_t dims[4] = {y.n, y.h, y.w, y.c};
	if ((status = make_output(context, 0, dims, 4, &y.data)) != NULL) return status;
	team t = team_of(context, 1);
	return enlarge_join(&t, from, count, y) ? NULL : refuse(name, no_memory);
}

// update is a step of Adam of one parameter.
#define PIECE 16384 // numbers that one thread takes at a time
typedef struct {
	long n, parts;
	float rates[7];
	const float *before[3], *gradients[MAX_PARTS];
	float *after[3];
} update;

static void update_piece(void *data, size_t piece) {
	const update *u = data;
	const microkernels *m = best_microkernels();
	long at = (long)piece * PIECE, n = u->n - at < PIECE ? u->n - at : PIECE;
	const float *gradients[MAX_PARTS], *before[3];
	float *after[3], few[(3 + 3 + 1) * MAX_LANES] = {0};
	for (long k = 0; k < u->parts; k++) gradients[k] = u->gradients[k] + at;
	for (int i = 0; i < 3; i++) before[i] = u->before[i] + at, after[i] = u->after[i] + at;
	if (n >= m->lanes) {
		m->adam(n, u->rates, gradients, u->parts, before, after);
		return;
	}
	// Fewer than a vector has: copied to where there is room for one.
	for (int i = 0; i < 3; i++) {
		memcpy(few + i * MAX_LANES, before[i], (size_t)n * sizeof(float));
		before[i] = few + i * MAX_LANES;
		after[i] = few + (3 + i) * MAX_LANES;
	}
	float *sum = few + 6 * MAX_LANES;
	for (long k = 0; k < u->parts; k++)
		for (long i = 0; i < n; i++) sum[i] += gradients[k][i];
	gradients[0] = sum;
	m->adam(m->lanes, u->rates, gradients, 1, before, after);
	for (int i = 0; i < 3; i++) memcpy(u->after[i] + at, after[i], (size_t)n * sizeof(float));
}

// compute_adam takes a step of Adam: (step size, correction, parameter, first moment,
// second moment, gradients), to the parameter and the moments as they are then.
static OrtStatus *compute_adam(void *op_kernel, OrtKernelContext *context) {
	const kernel *k = op_kernel;
	const char *name = "Adam";
	size_t count = 0;
	OrtStatus *status = ort.KernelContext_GetInputCount(context, &count);
	if (status != NULL) return status;
	if (count < 6 || count - 5 > MAX_PARTS) return refuse(name, "there are too few gradients or too many");
	update u = {.n = 1, .parts = (long)count - 5};
	input first = {0};
	for (size_t i = 0; i < count; i++) {
		input in;
		if ((status = read_input(name, context, i, &in)) != NULL) return status;
		if (i < 2) {
			if (in.rank > 1 || (in.rank == 1 && in.dims[0] != 1)) return refuse(name, "a rate is no single number");
			u.rates[i] = *in.data;
			continue;
		}
		if (i == 2) {
			first = in;
			for (size_t d = 0; d < in.rank; d++) u.n *= in.dims[d];
		} else if (!has_dims(&in, first.rank, first.dims)) {
			return refuse(name, "moments or gradients are not of the parameter's shape");
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
	t.each(&t, update_piece, pieces, &u);
	return NULL;
}

// operator is one of them. Its description comes first, as ONNX Runtime's callbacks are
// given a pointer to that.
typedef struct {
	OrtCustomOp op;
	const char *name;
	size_t required, optional;
	int variadic;               // whether the last operand may come several times
	size_t outputs;
	int window, rectify, residual; // which attributes it has; fixed comes with rectify and residual
	const char *const *rates;      // names of numbers that it has, up to NULL
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
	pthread_mutex_destroy(&k->kept.lock);
	free(k->kept.weights);
	free(k);
}


static OrtStatus *op_create(const OrtCustomOp *op, OrtApi *api, const OrtKernelInfo *info, void **out) {
	(void)api;
	const operator *o = (const operator *)op;
	kernel *k = calloc(1, sizeof *k);
	if (k == NULL) return refuse(o->name, no_memory);
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
	pthread_mutex_init(&k->kept.lock, NULL);
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
    OPERATOR("Down", compute_down, .required = 2, .optional = 3, .outputs = 1, .window = 1, .rectify = 1),
    OPERATOR("Up", compute_up, .required = 2, .optional = 3, .outputs = 1, .window = 1, .rectify = 1),
    OPERATOR("InvertedResidual", compute_inverted, .required = 5, .optional = 2, .outputs = 1, .window = 1, .residual = 1),
    OPERATOR("Correlate", compute_correlate, .required = 2, .outputs = 1, .window = 1),
    OPERATOR("ChannelSum", compute_sum, .required = 1, .outputs = 1),
    OPERATOR("ChannelsLast", compute_last, .required = 1, .outputs = 1),
    OPERATOR("Normalize", compute_normalize, .required = 1, .outputs = 1, .rates = normalize_rates),
    OPERATOR("SigmoidMSE", compute_error, .required = 2, .outputs = 1),
    OPERATOR("EnlargeJoin", compute_join, .required = 1, .variadic = 1, .outputs = 1),
    OPERATOR("Adam", compute_adam, .required = 6, .variadic = 1, .outputs = 3, .rates = adam_rates),
};

// told is a status's message, and the end of the status.
static char *told(OrtStatus *status) {
	char *message = strdup(ort.GetErrorMessage(status));
	ort.ReleaseStatus(status);
	return message;
}

char *register_operators(void *entry, void *options) {
	// Calls come one at a time; see Register.
	static OrtCustomOpDomain *domain;
	if (domain == NULL) {
		const OrtApiBase *(*base)(void) = (const OrtApiBase *(*)(void))entry;
		OrtApi *api = base()->GetApi(ABI_VERSION);
		if (api == NULL) return strdup("the library does not know this release of its interface");
#define FIND(place, result, name, parameters) ort.name = (result(*) parameters)api[place];
		ABI_FUNCTIONS(FIND)
#undef FIND
		OrtCustomOpDomain *made = NULL;
		OrtStatus *status = ort.CreateCustomOpDomain(DOMAIN, &made);
		for (size_t i = 0; status == NULL && i < sizeof operators / sizeof *operators; i++)
			status = ort.CustomOpDomain_Add(made, &operators[i].op);
		if (status != NULL) return told(status);
		domain = made; // for as long as the process runs
	}
	OrtStatus *status = ort.AddCustomOpDomain(options, domain);
	return status == NULL ? NULL : told(status);
}
