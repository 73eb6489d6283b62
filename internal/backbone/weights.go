package backbone

import (
	"crypto/sha256"
	_ "embed" // for the file of weights
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Embedded is the network whose weights the program holds, file is their file.
// scripts/backbone.sh makes the files; another network is another name in these
// two lines.
const Embedded = "efficientnet-lite0"

// LastBlock is the last block whose weights the file has. Nothing is decided by what
// comes behind it, which would be half of the file.
const LastBlock = 12

//go:embed efficientnet-lite0.safetensors
var file []byte

var (
	//go:embed NOTICE
	notice []byte
	//go:embed LICENSE
	license []byte
)

// License returns where the weights are from and the text of their license, which go
// with every copy of them.
func License() []byte { return slices.Concat(notice, []byte("\n"), license) }

// ErrNotEmbedded is returned, wrapped with the name, for a network whose weights
// the program does not hold.
var ErrNotEmbedded = errors.New("backbone: no weights of this network in the program")

// Tensor is a tensor of weights, in row-major order.
type Tensor struct {
	Name  string
	Shape []int
	Data  []float32
}

// embedded decodes the file once.
var embedded = sync.OnceValues(func() ([]Tensor, error) {
	_, tensors, err := parse(file)
	return tensors, err
})

var sum = sync.OnceValue(func() [sha256.Size]byte { return sha256.Sum256(file) })

// Bytes returns what the weights of the embedded network take as float32, in bytes.
func Bytes() int64 { return 2 * int64(len(file)) }

// SHA256 returns the SHA-256 of the file of weights that the program holds.
func SHA256() [sha256.Size]byte { return sum() }

// Weights returns the weights of the network of that name, in the order of
// Spec.Parameters, up to the last block that the file has. They are shared: the
// caller must not change them. It returns ErrNotEmbedded for a network that the
// program does not hold.
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
