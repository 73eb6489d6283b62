package backbone

import (
	"crypto/sha256"
	_ "embed" // for the weights
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Embedded is the name of the network whose weights are embedded.
// scripts/backbone.sh builds the weights file; to embed another network, change
// this constant and the go:embed directive of file.
const Embedded = "efficientnet-lite0"

// LastBlock is the last block whose weights are embedded. The blocks after it would
// double the file, and no score uses them.
const LastBlock = 12

//go:embed efficientnet-lite0.safetensors
var file []byte

var (
	//go:embed NOTICE
	notice []byte
	//go:embed LICENSE
	license []byte
)

// License returns the origin of the weights and the text of their license, which
// must accompany every copy of them.
func License() []byte { return slices.Concat(notice, []byte("\n"), license) }

// ErrNotEmbedded is returned, wrapped with the name, for a network whose weights
// are not embedded.
var ErrNotEmbedded = errors.New("backbone: weights not embedded")

// Tensor is a tensor of weights, in row-major order.
type Tensor struct {
	Name  string
	Shape []int
	Data  []float32
}

// embedded parses the file once.
var embedded = sync.OnceValues(func() ([]Tensor, error) {
	_, tensors, err := parse(file)
	return tensors, err
})

var sum = sync.OnceValue(func() [sha256.Size]byte { return sha256.Sum256(file) })

// Bytes returns the size of the embedded network's weights as float32, in bytes.
func Bytes() int64 { return 2 * int64(len(file)) }

// SHA256 returns the SHA-256 of the embedded weights file.
func SHA256() [sha256.Size]byte { return sum() }

// Weights returns the weights of the network with a name, in the order of
// Spec.Parameters, up to LastBlock. They are shared: the caller must not modify
// them. It returns ErrNotEmbedded if the weights are not embedded.
func Weights(name string) ([]Tensor, error) {
	if name != Embedded {
		return nil, fmt.Errorf("%w: %.40q", ErrNotEmbedded, name)
	}
	spec, err := Named(name)
	if err != nil {
		return nil, err
	}
	tensors, err := embedded()
	if err != nil {
		return nil, err
	}
	ps := spec.Parameters(LastBlock)
	if len(tensors) != len(ps) {
		return nil, fmt.Errorf("%w: %d tensors of %s, expected %d", ErrFormat, len(tensors), name, len(ps))
	}
	for i, t := range tensors {
		if t.Name != ps[i].Name || !slices.Equal(t.Shape, ps[i].Shape) {
			return nil, fmt.Errorf("%w: %s of shape %v, expected %s of %v", ErrFormat, t.Name, t.Shape, ps[i].Name, ps[i].Shape)
		}
	}
	return tensors, nil
}
