// Inverted residual blocks (Sandler et al., "MobileNetV2: Inverted Residuals and Linear
// Bottlenecks", 2018): a 1×1 convolution that expands the channels, a depthwise convolution, and a
// 1×1 convolution that projects them back. The first two are followed by a ReLU6.
#ifndef ANOMALY_INVERTED_H
#define ANOMALY_INVERTED_H

#include "convolution.h"

// inverted is a block. 1×1 kernels are O×I, the depthwise kernel is C×K×K. If expand is NULL, there
// is no expansion, and hidden equals in.
typedef struct {
	window w; // of the depthwise convolution; padding is at the top and left
	long in, hidden, out; // channels
	const float *expand, *expand_bias, *depthwise, *depthwise_bias, *project, *project_bias;
	int residual; // whether the input is added to the result
} inverted;

// inverted_fits reports whether a block maps x to y.
int inverted_fits(const inverted *b, image x, image y);

// inverted_residual computes y from x. cache is NULL if the weights may change between
// computations. It returns 0 if there is no memory.
int inverted_residual(const team *t, const inverted *b, weight_cache *cache, image x, image y);

#endif
