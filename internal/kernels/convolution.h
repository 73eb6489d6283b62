// Convolutions of images with channels last, and their gradients.
//
// A convolution maps a large image to a small one: tap t of the kernel connects pixel q of the
// small image with pixel stride·q − padding + t of the large image, along rows and columns alike.
// Pixels outside the large image are zeros. Images are N×H×W×C in float32; the kernel is S×L×K×K:
// channels of the small image × channels of the large one × rows × columns, which is PyTorch's
// layout for both Conv2d and ConvTranspose2d.
#ifndef ANOMALY_CONVOLUTION_H
#define ANOMALY_CONVOLUTION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

// window is the geometry of a convolution: the side of the kernel, at most MAX_KERNEL, the stride,
// 1 or 2, and the padding at the top and left, which is less than the kernel's side.
#define MAX_KERNEL 7
typedef struct {
	long kernel, stride, padding;
} window;

// image is a batch of images, n×h×w×c.
typedef struct {
	float *data;
	long n, h, w, c;
} image;

// epilogue is applied to a result before it is stored, in this order: the bias is added per channel
// (NULL for none); a ReLU is applied if rectify is not 0, a ReLU6 if it is RECTIFY_RELU6; results
// whose mask, of the result's shape, is not above 0 become 0 (NULL for none).
#define RECTIFY_RELU6 2
typedef struct {
	const float *bias, *mask;
	int rectify;
} epilogue;

// team provides threads and scratch memory.
typedef struct team {
	// parallel_for calls f with data and every i < n, concurrently.
	void (*parallel_for)(const struct team *t, void (*f)(void *data, size_t i), size_t n, void *data);
	void *context;
	long pieces; // the minimum number of pieces to split work into, if possible
	// scratch_alloc returns NULL if there is no memory.
	void *(*scratch_alloc)(size_t bytes);
	void (*scratch_free)(void *memory);
} team;

// weight_cache keeps the packed weights of one version of a kernel. Computations with one version
// must end before those with another begin; those with the same version may run concurrently. The
// owner zeroes it and initializes the lock, and frees the weights.
typedef struct {
	pthread_mutex_t lock;
	float *weights;
	float version;
	int filled;
} weight_cache;

// conv_fits reports whether a window maps the large image to the small one.
int conv_fits(window w, image small, image large);

// conv computes the small image from the large one: a convolution. cache is NULL if the kernel may
// change between computations; otherwise version identifies the kernel. Like the other functions
// here, it returns 0 if there is no memory.
int conv(const team *t, window w, image large, const float *kernel, weight_cache *cache, float version, epilogue f, image small);

// conv_transpose computes the large image from the small one: a transposed convolution.
int conv_transpose(const team *t, window w, image small, const float *kernel, weight_cache *cache, float version, epilogue f, image large);

// conv_weight_grad computes the gradient of the kernel, S×L×K×K, on one thread.
int conv_weight_grad(const team *t, window w, image small, image large, float *kernel);

// sum_channels computes the sum of each channel over all pixels of all images.
void sum_channels(image x, float *sums);

// resize_concat concatenates images of n×c×h×w, channels first, along their channels into y. Each is
// enlarged by a whole factor to the size of the first, by linear interpolation between pixel centres.
// resize_concat_fits reports whether the shapes match.
int resize_concat_fits(const image *from, size_t count, image y);
int resize_concat(const team *t, const image *from, size_t count, image y);

// channels_last converts an image of n×c×h×w to x, n×h×w×c, and computes (value − mean)·scale.
void channels_last(const team *t, const float *from, float mean, float scale, image x);

// sigmoid_mse computes the mean squared error between sigmoid(x) and y, which has the same shape:
// one number per image of the batch.
int sigmoid_mse(const team *t, image x, image y, float *errors);

#endif
