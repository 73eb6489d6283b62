// Command check converts what belongs to deploy for the programs that validate it; see
// scripts/deploy-check.sh. It reads the standard input or files, and writes to the standard
// output.
//
//	check rules FILE      the PromQL expressions of a Grafana dashboard, as recording rules
//	check schema FILE     the JSON schema of the newest version in a CustomResourceDefinition
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"gopkg.in/yaml.v3"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		os.Exit(1)
	}
}

func run(args []string, w io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: check rules|schema FILE")
	}
	data, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "rules":
		return rules(data, w)
	case "schema":
		return schema(data, w)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// dashboard is what matters here of a Grafana dashboard.
type dashboard struct {
	Panels []struct {
		ID      int    `json:"id"`
		Title   string `json:"title"`
		Type    string `json:"type"`
		Targets []struct {
			Expr string `json:"expr"`
		} `json:"targets"`
	} `json:"panels"`
}

// rules writes the expressions of a dashboard as rules, which promtool parses. Grafana's
// variables become values of their kinds.
func rules(data []byte, w io.Writer) error {
	var d dashboard
	if err := json.Unmarshal(data, &d); err != nil {
		return err
	}
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	type group struct {
		Name  string `yaml:"name"`
		Rules []rule `yaml:"rules"`
	}
	g := group{Name: "dashboard"}
	for _, p := range d.Panels {
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 {
			return fmt.Errorf("panel %q has no expression", p.Title)
		}
		for i, t := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$__interval", "1m", "$__range", "1h").Replace(t.Expr)
			if strings.Contains(expr, "$") {
				return fmt.Errorf("panel %q has an unknown variable: %s", p.Title, t.Expr)
			}
			g.Rules = append(g.Rules, rule{fmt.Sprintf("panel_%d_%d", p.ID, i), expr})
		}
	}
	if len(g.Rules) == 0 {
		return errors.New("the dashboard has no panels")
	}
	return yaml.NewEncoder(w).Encode(map[string][]group{"groups": {g}})
}

// schema writes the schema of a resource definition for kubeconform. Unknown fields are
// errors, as for kubectl --validate=strict.
func schema(data []byte, w io.Writer) error {
	var crd struct {
		Spec struct {
			Versions []struct {
				Storage bool
				Schema  struct {
					OpenAPIV3Schema map[string]any `yaml:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(data, &crd); err != nil {
		return err
	}
	for _, v := range crd.Spec.Versions {
		if v.Storage && v.Schema.OpenAPIV3Schema != nil {
			closed(v.Schema.OpenAPIV3Schema)
			return json.NewEncoder(w).Encode(v.Schema.OpenAPIV3Schema)
		}
	}
	return errors.New("no stored version has a schema")
}

// closed forbids fields that a schema does not name, in all its objects but metadata, whose
// fields Kubernetes itself checks.
func closed(s map[string]any) {
	fields, object := s["properties"].(map[string]any)
	_, open := s["additionalProperties"]
	if preserved, _ := s["x-kubernetes-preserve-unknown-fields"].(bool); object && !open && !preserved {
		s["additionalProperties"] = false
	}
	for name, f := range fields {
		if f, ok := f.(map[string]any); ok && name != "metadata" {
			closed(f)
		}
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if f, ok := s[key].(map[string]any); ok {
			closed(f)
		}
	}
	if s["x-kubernetes-int-or-string"] == true {
		delete(s, "type") // an anyOf of both
	}
}
