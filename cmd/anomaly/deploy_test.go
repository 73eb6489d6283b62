package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// checkArguments fails the test unless the first argument is a command and all flags among
// the others are flags of it, with values that it can parse.
func checkArguments(t *testing.T, where string, args []string) {
	t.Helper()
	root := rootCommand()
	if len(args) == 0 {
		t.Errorf("%s has no command", where)
		return
	}
	c, rest, err := root.Find(args)
	if err != nil || c == root {
		t.Errorf("%s: unknown command %q: %v", where, args[0], err)
		return
	}
	if err := c.ParseFlags(rest); err != nil {
		t.Errorf("%s: %s: %v", where, c.Name(), err)
		return
	}
	if left := c.Flags().Args(); len(left) > 0 {
		t.Errorf("%s: %s has arguments %q", where, c.Name(), left)
	}
}

func TestDeploy_ComposeFilesUseFlagsThatExist(t *testing.T) {
	checked := 0
	for _, path := range []string{"../../deploy/compose.yaml", "../../deploy/compose.deepmed.yaml"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Services map[string]struct {
				Image   string
				Command []string
			}
		}
		if err := yaml.Unmarshal(data, &file); err != nil {
			t.Fatal(err)
		}
		for name, s := range file.Services {
			if strings.Contains(s.Image, "ANOMALY_IMAGE") {
				checked++
				checkArguments(t, path+", "+name, s.Command)
			}
		}
	}
	if checked != 5 {
		t.Errorf("%d services of this program, expected 5", checked)
	}
}

// action matches an action of a template, with what it prints.
var action = regexp.MustCompile(`\{\{-?[^}]*\}\}`)

func TestDeploy_ChartUsesFlagsThatExist(t *testing.T) {
	folder := "../../deploy/helm/anomaly/templates"
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	argument := regexp.MustCompile(`(?m)^- (.*)$`)
	// block returns the arguments in a definition of a template.
	block := func(text, name string) (list []string) {
		_, text, ok := strings.Cut(text, `{{- define "`+name+`" -}}`)
		if !ok {
			t.Fatalf("there is no %s", name)
		}
		text, _, _ = strings.Cut(text, "{{- end -}}\n")
		for _, m := range argument.FindAllStringSubmatch(text, -1) {
			list = append(list, m[1])
		}
		return list
	}
	nats := block(read("_helpers.tpl"), "anomaly.nats")
	for name, file := range map[string]string{"anomaly.serveArgs": "serve.yaml", "anomaly.workerArgs": "worker.yaml"} {
		var args []string
		for _, a := range append(block(read(file), name), nats...) {
			value := "1" // of a number, and of a text
			switch flag, _, _ := strings.Cut(a, "="); flag {
			case "--grace":
				value = "30s"
			case "--kinds":
				value = "train"
			}
			args = append(args, action.ReplaceAllString(a, value))
		}
		if len(args) < 12 {
			t.Errorf("%s has the arguments %q", name, args)
		}
		checkArguments(t, name, args)
	}
}

func TestDeploy_DockerfileUsesFlagsThatExist(t *testing.T) {
	data, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	commands := regexp.MustCompile(`(?m)^CMD \[(.*)\]$`).FindAllStringSubmatch(string(data), -1)
	if len(commands) == 0 {
		t.Error("there is no command")
	}
	for _, m := range commands {
		var args []string
		if err := yaml.Unmarshal([]byte("["+m[1]+"]"), &args); err != nil {
			t.Fatal(err)
		}
		checkArguments(t, "Dockerfile", args)
	}
}
