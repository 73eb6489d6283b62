// Convolutions of images with channels last, and their derivatives, on one thread.
//
// A convolution connects a large image with a small one: the kernel's tap t of the
// small image's pixel q lies on the large image's pixel stride·q − padding + t, along
// rows and columns alike. The images are N×H×W×C in float32, the kernel is
// S×L×K×K: small channels × large channels × rows × columns, as PyTorch has it both
// for Conv2d and for ConvTranspose2d.
#ifndef ANOMALY_CONVOLUTION_H
#define ANOMALY_CONVOLUTION_H

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
// is added (NULL for none), where rectify is set what is below 0 becomes 0, and where
// the mask, of the result's shape, is not above 0, the result becomes 0 (NULL for none).
typedef struct {
	const float *bias, *mask;
	int rectify;
} finish;

// Memory that a computation needs for itself comes from its caller, who frees it.
// These say how many bytes; 0 is for sizes that are refused.
size_t down_scratch(window w, image large, image small);
size_t up_scratch(window w, image small, image large);
size_t correlate_scratch(window w, image small, image large);

// down writes the small image from the large one: a convolution.
void down(window w, image large, const float *kernel, finish f, image small, void *scratch);

// up writes the large image from the small one: a transposed convolution.
void up(window w, image small, const float *kernel, finish f, image large, void *scratch);

// correlate writes the derivative with regard to the kernel, S×L×K×K.
void correlate(window w, image small, image large, float *kernel, void *scratch);

// sum_channels writes the sum of each channel over all pixels of all images.
void sum_channels(image x, float *sums);

// enlarge_join writes images of n×c×h×w, channels first, over each other into y, whose side
// is that of the first: each is enlarged to it, interpolated linearly between the pixels'
// centres. scratch is of enlarge_join_scratch bytes, 0 of which are for images that do not
// fit.
size_t enlarge_join_scratch(const image *from, size_t count, image y);
void enlarge_join(const image *from, size_t count, image y, void *scratch);

// channels_last writes an image of n×c×h×w as x, n×h×w×c.
void channels_last(const float *from, image x);

#endif
