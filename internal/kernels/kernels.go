// Package kernels holds convolutions, their derivatives and Adam's step as operators that
// ONNX Runtime runs beside its own, on the processor. They are written in C, for the
// processor's vector instructions; package exporter lowers to them what runs here, a
// training's steps and verdicts. Files that users take away hold none of them.
//
// Nothing else lives here: no graph, no training, no reading of files.
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

// MaxParts is how many gradients Adam takes, MaxJoined how many images EnlargeJoin does.
const (
	MaxParts  = C.MAX_PARTS
	MaxJoined = C.MAX_JOINED
)

// Domain is the operators' domain in an ONNX graph, Version its only version.
const (
	Domain  = "anomaly"
	Version = 1
)

// The operators, on float32 images with channels last. Kernels are S×L×K×K: channels of
// the small image × channels of the large one × rows × columns.
const (
	// Down is a convolution: the large image N×H×W×L, the kernel, and if wanted a bias
	// (S), a mask, which sets results to 0 where it is not above 0, and the kernel's
	// version (one number), to N×h×w×S. What must be made of a kernel is made once for
	// each version; runs of one version end before those of another begin.
	// Attributes: kernel, stride, padding, which is that at the top and left, rectify, which
	// is Rectify for a ReLU behind it and RectifySix for a ReLU6, and fixed, which is 1 for a
	// kernel that is the same in every run.
	Down = "Down"
	// Up is a transposed convolution, the other way round, to N×H×W×L.
	Up = "Up"
	// InvertedResidual is a depthwise convolution with the 1×1 convolutions around it: the
	// image N×H×W×I, kernel (C×1×K×K) and bias (C) of the depthwise one, kernel (O×C×1×1) and
	// bias (O) of the one behind it, and of the one before it, C×I×1×1 and C, if there is one,
	// to N×h×w×O. The first two have a ReLU6 behind them. Attributes: kernel, which is 3 or
	// 5, stride and padding of the depthwise one, residual, which is 1 where the image is
	// added to the result, and fixed.
	InvertedResidual = "InvertedResidual"
	// Correlate is the derivative with regard to the kernel: the small image and the
	// large one, one of them the gradient. Attributes: kernel, stride, padding.
	Correlate = "Correlate"
	// ChannelSum adds up each channel over images and pixels.
	ChannelSum = "ChannelSum"
	// Adam takes a step of one parameter: step size, correction (network.Update), the
	// parameter, its first and its second moment, and the gradients of the batch's parts,
	// to the parameter and the moments after the step. Attributes: beta1, rest1 (1−β₁),
	// beta2, rest2, epsilon.
	Adam = "Adam"
	// EnlargeJoin puts images, N×C×P×P with channels first, over each other into one with
	// channels last. Each is enlarged to the first's side.
	EnlargeJoin = "EnlargeJoin"
	// SigmoidMSE compares a result before its sigmoid with an image of the same shape: to
	// the mean squared error of each of the batch (N).
	SigmoidMSE = "SigmoidMSE"
	// ChannelsLast brings N×C×H×W to N×H×W×C.
	ChannelsLast = "ChannelsLast"
	// Normalize does so too, and makes of each number (x − mean)·scale. Attributes: mean,
	// scale.
	Normalize = "Normalize"
)

// What stands behind a convolution: nothing, a ReLU or a ReLU6.
const (
	RectifyNone = 0
	Rectify     = 1
	RectifySix  = C.RECTIFY_SIX
)

// MaxKernel is the largest side of a kernel.
const MaxKernel = C.MAX_KERNEL

// ErrRegister is returned, wrapped, when ONNX Runtime or the package that binds it is not
// one that the operators can be registered with.
var ErrRegister = errors.New("the training's operators cannot be registered with ONNX Runtime")

// registering is held while operators are registered. entry is ONNX Runtime's
// OrtGetApiBase once it was found: a process loads one library.
var (
	registering sync.Mutex
	entry       unsafe.Pointer
)

// Register makes the operators known to sessions that are made with those options, which
// are onnxruntime_go's *SessionOptions. library is the path of the library that is loaded.
// It returns ErrRegister.
func Register(options any, library string) error {
	registering.Lock()
	defer registering.Unlock()
	// The binding has no call for this and keeps ONNX Runtime's own options to itself.
	v := reflect.ValueOf(options)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct || v.Elem().NumField() != 1 || v.Elem().Field(0).Kind() != reflect.Pointer {
		return fmt.Errorf("%w: its options are a %T of another kind", ErrRegister, options)
	}
	own := v.Elem().Field(0).UnsafePointer()
	if entry == nil {
		path, name := C.CString(library), C.CString("OrtGetApiBase")
		defer C.free(unsafe.Pointer(path))
		defer C.free(unsafe.Pointer(name))
		handle := C.dlopen(path, C.RTLD_LAZY)
		if handle == nil {
			return fmt.Errorf("%w: %s cannot be opened again", ErrRegister, library)
		}
		// The handle is kept: what was found stays in use until the process ends.
		if entry = C.dlsym(handle, name); entry == nil {
			return fmt.Errorf("%w: %s has no OrtGetApiBase", ErrRegister, library)
		}
	}
	if problem := C.register_operators(entry, own); problem != nil {
		defer C.free(unsafe.Pointer(problem))
		return fmt.Errorf("%w: %s", ErrRegister, C.GoString(problem))
	}
	return nil
}

// Instructions names the processor's vector instructions that the operators use.
func Instructions() string { return C.GoString(C.best_microkernels().name) }

// InstructionSets are the names of all sets that the operators are written for on this
// kind of processor, the best first.
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

// UseInstructions has the operators use that set instead of the best, for comparisons,
// and says whether this processor has it. Nothing may be computed meanwhile.
func UseInstructions(set string) bool {
	name := C.CString(set)
	defer C.free(unsafe.Pointer(name))
	return C.choose_microkernels(name) != 0
}
