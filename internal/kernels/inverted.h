// Inverted residual blocks, of which a small pretrained backbone consists (Sandler et al.,
// "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018): a 1×1 convolution to
// several times as many channels, a convolution of each of them by itself, and a 1×1
// convolution back. The first two have a ReLU6 behind them.
#ifndef ANOMALY_INVERTED_H
#define ANOMALY_INVERTED_H

#include "convolution.h"

// inverted is a block: kernels are O×I of the 1×1 convolutions, C×K×K of the depthwise one.
// Where expand is NULL the first convolution is left out, and hidden is in.
typedef struct {
	window w; // of the depthwise convolution; its padding is at the top and left
	long in, hidden, out; // channels
	const float *expand, *expand_bias, *depthwise, *depthwise_bias, *project, *project_bias;
	int residual; // the block's input is added to its result
} inverted;

// inverts says whether a block leads from x to y.
int inverts(const inverted *b, image x, image y);

// inverted_residual writes y from x. keep is NULL for a block whose weights may change from
// one computation to the next. It returns 0 where there was no memory.
int inverted_residual(const team *t, const inverted *b, kept *keep, image x, image y);

#endif
