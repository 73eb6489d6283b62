// Convolutions of images with channels last, and their derivatives.
//
// A convolution connects a large image with a small one: the kernel's tap t of the
// small image's pixel q lies on the large image's pixel stride·q − padding + t, along
// rows and columns alike, of zeros where that lies beside it. The images are N×H×W×C in float32, the kernel is
// S×L×K×K: small channels × large channels × rows × columns, as PyTorch has it both
// for Conv2d and for ConvTranspose2d.
#ifndef ANOMALY_CONVOLUTION_H
#define ANOMALY_CONVOLUTION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

// window is a kernel's geometry: its side, at most MAX_KERNEL, its stride, 1 or 2, and
// its padding, which is less than its side.
#define MAX_KERNEL 7
typedef struct {
	long kernel, stride, padding;
} window;

// image is a batch of images in memory, n×h×w×c.
typedef struct {
	float *data;
	long n, h, w, c;
} image;

// finish is what is done with a result before it is written: the bias of its channels
// is added (NULL for none), where rectify is set what is below 0 becomes 0, and what is above
// 6 becomes 6 where it is RECTIFY_SIX, and where the mask, of the result's shape, is not above
// 0, the result becomes 0 (NULL for none).
#define RECTIFY_SIX 2
typedef struct {
	const float *bias, *mask;
	int rectify;
} finish;

// team is what a computation has of its surroundings: threads, and memory for itself.
typedef struct team {
	// each calls f with data and every number below n, some of the calls at once.
	void (*each)(const struct team *t, void (*f)(void *data, size_t i), size_t n, void *data);
	void *context;
	long pieces; // that a computation should be cut into at least, if it can be
	// borrow gives so many bytes, or NULL where there are none; what it gave is given
	// back.
	void *(*borrow)(size_t bytes);
	void (*give_back)(void *memory);
} team;

// kept is where the weights of a kernel stay in the order in which they are read, for as
// long as the kernel is of one version. Computations of a version end before one of
// another begins; those of the same may run at once. Its owner makes it with all bytes
// zero and a lock, and frees the weights.
typedef struct {
	pthread_mutex_t lock;
	float *weights;
	float version;
	int filled;
} kept;

// fits says whether a kernel's geometry connects the two images.
int fits(window w, image small, image large);

// down writes the small image from the large one: a convolution. keep is NULL for a kernel
// that may change from one computation to the next; else version is the kernel's. Like the other computations it returns 0 where there was no memory.
int down(const team *t, window w, image large, const float *kernel, kept *keep, float version, finish f, image small);

// up writes the large image from the small one: a transposed convolution.
int up(const team *t, window w, image small, const float *kernel, kept *keep, float version, finish f, image large);

// correlate writes the derivative with regard to the kernel, S×L×K×K. It takes one thread.
int correlate(const team *t, window w, image small, image large, float *kernel);

// sum_channels writes the sum of each channel over all pixels of all images.
void sum_channels(image x, float *sums);

// enlarge_join writes images of n×c×h×w, channels first, over each other into y, whose side
// is that of the first: each is enlarged to it, interpolated linearly between the pixels'
// centres. joins says whether they fit.
int joins(const image *from, size_t count, image y);
int enlarge_join(const team *t, const image *from, size_t count, image y);

// channels_last writes an image of n×c×h×w as x, n×h×w×c, less the mean and times the scale.
void channels_last(const team *t, const float *from, float mean, float scale, image x);

// sigmoid_mse writes the mean squared error between the sigmoids of x and the image y, of the
// same shape, one number for each image of the batch.
int sigmoid_mse(const team *t, image x, image y, float *errors);

#endif
