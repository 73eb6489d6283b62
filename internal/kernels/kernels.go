// Package kernels provides convolutions, their gradients and Adam's update as custom operators of
// ONNX Runtime's CPU provider. They are written in C with vector instructions. Package exporter
// lowers the graphs that run in this process to them: training steps and inference. Exported files
// never contain them.
//
// The package has no graphs, no training and no file I/O.
package kernels

/*
#cgo linux LDFLAGS: -ldl -lm
#include <dlfcn.h>
#include <stdlib.h>
#include "convolution.h"
#include "microkernel.h"
#include "operators.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"unsafe"
)

// Limits on the number of operands.
const (
	// MaxParts is the maximum number of gradients of Adam, one per micro-batch.
	MaxParts = C.MAX_MICRO_BATCHES
	// MaxJoined is the maximum number of images of ResizeConcat.
	MaxJoined = C.MAX_CONCAT
)

// Domain is the operators' domain in an ONNX graph, and Version its only version. Operators of
// the same name in ONNX's own domain are different operators.
const (
	Domain  = "anomaly"
	Version = 1
)

// The operators, on float32 images with channels last (N×H×W×C). A convolution maps a large image
// to a small one; kernels are S×L×K×K: channels of the small image × channels of the large one ×
// rows × columns.
const (
	// Conv is a convolution: the large image (N×H×W×L), the kernel, and optionally a bias (S), a
	// mask, which sets results to 0 where it is not above 0, and the kernel's version (one number),
	// to N×h×w×S. Weights are packed once per version; runs with one version must end before those
	// with another begin. Attributes: kernel, stride, padding at the top and left, rectify
	// (RectifyNone, Rectify or RectifySix), and fixed, which is 1 if the kernel is the same in every
	// run.
	Conv = "Conv"
	// ConvTranspose is a transposed convolution, from N×h×w×S to N×H×W×L. Operands and attributes
	// are those of Conv.
	ConvTranspose = "ConvTranspose"
	// InvertedResidual is an inverted residual block: the image (N×H×W×I), kernel (C×1×K×K) and
	// bias (C) of the depthwise convolution, kernel (O×C×1×1) and bias (O) of the projection, and
	// optionally kernel (C×I×1×1) and bias (C) of the expansion, to N×h×w×O. The expansion and the
	// depthwise convolution are followed by a ReLU6. Attributes: kernel (3 or 5), stride and padding
	// of the depthwise convolution, residual, which is 1 if the image is added to the result, and
	// fixed.
	InvertedResidual = "InvertedResidual"
	// ConvWeightGrad is the gradient of a convolution's kernel: the small and the large image, one
	// of them a gradient. Attributes: kernel, stride, padding.
	ConvWeightGrad = "ConvWeightGrad"
	// ChannelSum sums each channel over images and pixels.
	ChannelSum = "ChannelSum"
	// Adam is an Adam update of one parameter: step size, correction (network.Update), parameter,
	// first and second moment, and the gradients of the micro-batches, to the new parameter and
	// moments. Attributes: beta1, rest1 (1−β₁), beta2, rest2, epsilon.
	Adam = "Adam"
	// ResizeConcat concatenates images, N×C×P×P with channels first, along their channels into one
	// image with channels last. Each is enlarged to the side of the first by linear interpolation.
	ResizeConcat = "ResizeConcat"
	// SigmoidMSE is the mean squared error between the sigmoid of a tensor and an image of the same
	// shape, for each image of the batch (N).
	SigmoidMSE = "SigmoidMSE"
	// ChannelsLast converts N×C×H×W to N×H×W×C.
	ChannelsLast = "ChannelsLast"
	// Normalize converts like ChannelsLast, and computes (x − mean)·scale. Attributes: mean, scale.
	Normalize = "Normalize"
)

// Activations after a convolution: none, ReLU and ReLU6.
const (
	RectifyNone = 0
	Rectify     = 1
	RectifySix  = C.RECTIFY_RELU6
)

// MaxKernel is the maximum side of a kernel.
const MaxKernel = C.MAX_KERNEL

// ErrRegister is returned, wrapped, when the operators cannot be registered with ONNX Runtime or
// with the package that binds it.
var ErrRegister = errors.New("custom operators cannot be registered with ONNX Runtime")

// registering serializes Register. entry is ONNX Runtime's OrtGetApiBase, looked up once: a process
// loads one library.
var (
	registering sync.Mutex
	entry       unsafe.Pointer
)

// Register registers the operators with sessions created with options, which must be onnxruntime_go's
// *SessionOptions. library is the path of the loaded library. It returns ErrRegister, wrapped, if
// either is not as expected.
func Register(options any, library string) error {
	registering.Lock()
	defer registering.Unlock()
	// The binding has no call for this, and does not export ONNX Runtime's options.
	v := reflect.ValueOf(options)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct || v.Elem().NumField() != 1 || v.Elem().Field(0).Kind() != reflect.Pointer {
		return fmt.Errorf("%w: unexpected layout of %T", ErrRegister, options)
	}
	own := v.Elem().Field(0).UnsafePointer()
	if entry == nil {
		path, name := C.CString(library), C.CString("OrtGetApiBase")
		defer C.free(unsafe.Pointer(path))
		defer C.free(unsafe.Pointer(name))
		handle := C.dlopen(path, C.RTLD_LAZY)
		if handle == nil {
			return fmt.Errorf("%w: cannot reopen %s", ErrRegister, library)
		}
		// The handle is never closed: its symbols are used until the process ends.
		if entry = C.dlsym(handle, name); entry == nil {
			return fmt.Errorf("%w: %s has no OrtGetApiBase", ErrRegister, library)
		}
	}
	if message := C.register_operators(entry, own); message != nil {
		defer C.free(unsafe.Pointer(message))
		return fmt.Errorf("%w: %s", ErrRegister, C.GoString(message))
	}
	return nil
}

// Instructions returns the name of the vector instruction set in use, such as "AVX2".
func Instructions() string { return C.GoString(C.best_microkernels().name) }

// InstructionSets returns the names of all instruction sets that are compiled in, the best first.
func InstructionSets() []string {
	var names []string
	for i := C.size_t(0); ; i++ {
		name := C.microkernels_name(i)
		if name == nil {
			return names
		}
		names = append(names, C.GoString(name))
	}
}

// UseInstructions selects an instruction set other than the best, for comparisons, and reports
// whether this processor supports it. No operator may be running.
func UseInstructions(set string) bool {
	name := C.CString(set)
	defer C.free(unsafe.Pointer(name))
	return C.choose_microkernels(name) != 0
}
