#ifndef ANOMALY_OPERATORS_H
#define ANOMALY_OPERATORS_H

// register_operators makes the operators known to sessions that are made with those
// options (an OrtSessionOptions). entry is ONNX Runtime's OrtGetApiBase. It returns what
// went wrong, which the caller frees, or NULL.
char *register_operators(void *entry, void *options);

#endif
