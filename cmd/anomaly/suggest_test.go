package main

import (
	"io"
	"strings"
	"testing"
)

// executed returns the error of a command line that is run in this process.
func executed(t *testing.T, args ...string) string {
	t.Helper()
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	err := root.ExecuteContext(t.Context())
	if err == nil {
		t.Errorf("%q: no error", args)
		return ""
	}
	return err.Error()
}

func TestCommands_SuggestTheNameOfAMistypedOne(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"trian"}, `unknown command "trian"; did you mean train?`},
		{[]string{"trian", "photos", "--level", "3"}, "did you mean train?"},
		{[]string{"Detect", "--model", "m.zip"}, "did you mean detect?"},
		{[]string{"predict", "--model", "m.zip", "a.png"}, "did you mean detect?"},
		{[]string{"calibarte"}, "did you mean calibrate?"},
		{[]string{"help", "verfy"}, "did you mean verify?"},
		{[]string{"version"}, "did you mean --version?"},
		{[]string{"ex"}, "anomaly help lists the commands"},
		{[]string{"dance"}, `unknown command "dance"; anomaly help lists the commands`},
		{[]string{strings.Repeat("train", 1000)}, "anomaly help lists the commands"},
	} {
		if got := executed(t, c.args...); !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%.100q: %q, want %q", c.args, got, c.want)
		}
	}
}

func TestCommands_SuggestTheNameOfAMistypedFlag(t *testing.T) {
	for _, c := range []struct{ command, flag, want string }{
		{"train", "--image_size=64", "unknown flag: --image_size; did you mean --image-size?"},
		{"train", "--imagesize", "did you mean --image-size?"},
		{"train", "--size", "did you mean --image-size?"},
		{"train", "--false_alarm_rate=0.1", "did you mean --false-alarm-rate?"},
		{"train", "--max_seconds=60", "did you mean --max-time?"},
		{"train", "--output=m.zip", "did you mean --out?"},
		{"train", "--lvl", "did you mean --level?"},
		{"train", "-level=3", "unknown shorthand flag: 'l' in -level=3; did you mean --level?"},
		{"train", "--epochs=9", "unknown flag: --epochs; anomaly train --help lists the flags"},
		{"detect", "--jsno", "did you mean --json?"},
		{"detect", "--treshold=1", "did you mean --threshold?"},
		{"calibrate", "--chekc", "did you mean --check?"},
		{"convert", "--too=m.pt", "did you mean --to?"},
		{"train", "-x", "unknown shorthand flag: 'x' in -x"},
	} {
		if got := executed(t, c.command, c.flag); !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%s %s: %q, want %q", c.command, c.flag, got, c.want)
		}
	}
}

func TestEditDistance_CountsAnExchangeAsOneEdit(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"train", "train", 0}, {"trian", "train", 1}, {"trin", "train", 1},
		{"trains", "train", 1}, {"brain", "train", 1}, {"kitten", "sitting", 3},
	} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
