package dataset

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

const (
	// maxYAMLBytes bounds a YAML file. maxYAMLFiles bounds the files that are searched
	// for class names; a data set normally has one.
	maxYAMLBytes = 1 << 20
	maxYAMLFiles = 100
	// maxClassNames bounds the names, maxClassName the bytes of a name.
	maxClassNames = 10_000
	maxClassName  = 1_000
)

// errNoClassNames is returned for a YAML file without class names.
var errNoClassNames = errors.New("no names, classes or labels in it")

// parseClassNames returns the class names in a YAML file. They are under `names`,
// `classes` or `labels`, as a list or as YOLO's mapping from number to name, whose names
// are returned in the order of the numbers.
func parseClassNames(data []byte) ([]string, error) {
	if len(data) > maxYAMLBytes {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(data), maxYAMLBytes)
	}
	var doc map[string]yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), "\n", " "))
	}
	for _, key := range []string{"names", "classes", "labels"} {
		node, ok := doc[key]
		if !ok {
			continue
		}
		names, err := classNames(&node)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		for _, n := range names {
			if len(n) > maxClassName {
				return nil, fmt.Errorf("%s: a name of %d bytes", key, len(n))
			}
		}
		if len(names) > 0 {
			return names, nil
		}
	}
	return nil, errNoClassNames
}

func classNames(node *yaml.Node) ([]string, error) {
	node = resolved(node)
	if n := len(node.Content); n > 2*maxClassNames {
		return nil, fmt.Errorf("%d entries, at most %d are allowed", n, maxClassNames)
	}
	switch node.Kind {
	case yaml.SequenceNode:
		var names []string
		for _, item := range node.Content {
			item = resolved(item)
			if item.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("line %d: a class name must be plain text", item.Line)
			}
			names = append(names, item.Value)
		}
		return names, nil
	case yaml.MappingNode:
		return mappedNames(node)
	}
	return nil, errNotNames
}

var errNotNames = errors.New("expected a list of names or a mapping from number to name")

// mappedNames returns the names in YOLO's mapping, whose numbers may be in quotes.
func mappedNames(node *yaml.Node) ([]string, error) {
	// The library bounds what aliases expand to.
	byKey := map[string]string{}
	if err := node.Decode(&byKey); err != nil {
		return nil, errNotNames
	}
	if len(byKey) > maxClassNames {
		return nil, fmt.Errorf("%d entries, at most %d are allowed", len(byKey), maxClassNames)
	}
	byNumber := make(map[int]string, len(byKey))
	for key, name := range byKey {
		n, err := strconv.Atoi(strings.TrimSpace(key))
		if err != nil {
			return nil, errNotNames
		}
		if _, twice := byNumber[n]; twice {
			return nil, fmt.Errorf("the number %d is there twice", n)
		}
		byNumber[n] = name
	}
	var names []string
	for _, n := range slices.Sorted(maps.Keys(byNumber)) {
		names = append(names, byNumber[n])
	}
	return names, nil
}

// resolved returns the node that an alias refers to, or the node itself. An alias never
// refers to another alias.
func resolved(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode && node.Alias != nil {
		return node.Alias
	}
	return node
}

// yamlRank returns the rank of a YAML file: data.yaml first, then classes.yaml, then all
// others.
func yamlRank(name string) int {
	switch base := strings.ToLower(path.Base(name)); strings.TrimSuffix(strings.TrimSuffix(base, ".yaml"), ".yml") {
	case "data":
		return 0
	case "classes":
		return 1
	}
	return 2
}
