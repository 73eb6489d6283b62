#ifndef ANOMALY_OPERATORS_H
#define ANOMALY_OPERATORS_H

// The maximum number of gradients that Adam adds up, and of images that ResizeConcat concatenates.
#define MAX_MICRO_BATCHES 1024
#define MAX_CONCAT 16

// register_operators registers the operators with sessions created with options, an
// OrtSessionOptions. entry is ONNX Runtime's OrtGetApiBase. It returns NULL, or an error message
// that the caller must free.
char *register_operators(void *entry, void *options);

#endif
