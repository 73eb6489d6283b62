package cluster

import (
	"bytes"
	"crypto/sha256"
	"io"
	"slices"
)

// Owners returns the n nodes that own a key, the first owner first; all nodes if there are
// fewer. It is rendezvous hashing (Thaler and Ravishankar, "A name-based mapping scheme for
// rendezvous", 1996): each node has a weight for the key, a hash of both, and the highest
// weights own it. All processes that know the same nodes choose the same owners, each node owns
// about as many keys, and only the keys of a node that leaves get another owner. The order of
// nodes does not matter.
func Owners(key string, nodes []string, n int) []string {
	type weighted struct {
		node   string
		weight []byte
	}
	list := make([]weighted, 0, len(nodes))
	for _, node := range nodes {
		h := sha256.New()
		_, _ = io.WriteString(h, key) // a hash does not fail
		_, _ = h.Write([]byte{0})
		_, _ = io.WriteString(h, node)
		list = append(list, weighted{node, h.Sum(nil)})
	}
	slices.SortFunc(list, func(a, b weighted) int { return bytes.Compare(b.weight, a.weight) })
	list = list[:max(min(n, len(list)), 0)]
	owners := make([]string, 0, len(list))
	for _, w := range list {
		owners = append(owners, w.node)
	}
	return owners
}
