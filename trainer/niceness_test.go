package trainer

import (
	"strings"
	"testing"
)

func TestPanicOfAWorkerIsAnErrorThatSaysWhere(t *testing.T) {
	err := Options{}.worker(func() error { panic("boom") })()
	if err == nil || !strings.Contains(err.Error(), "boom") || !strings.Contains(err.Error(), "niceness_test.go") {
		t.Error(err)
	}
}
