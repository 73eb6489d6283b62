#ifndef ANOMALY_OPERATORS_H
#define ANOMALY_OPERATORS_H

// The most gradients that a step of Adam adds up, and images that are joined.
#define MAX_PARTS 1024
#define MAX_JOINED 16

// register_operators makes the operators known to sessions that are made with those
// options (an OrtSessionOptions). entry is ONNX Runtime's OrtGetApiBase. It returns what
// went wrong, which the caller frees, or NULL.
char *register_operators(void *entry, void *options);

#endif
