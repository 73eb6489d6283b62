//go:build browser

package browsertest

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/deepmed/anomaly/internal/testkit"
)

// The programs are those that web/package-lock.json pins: make browser installs them.
func TestBundle_IsWhatTheSourcesBuildTo(t *testing.T) {
	for name, command := range map[string][]string{
		"types":  {"npm", "run", "--silent", "check"},
		"bundle": {"node", "build.mjs", "--check"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(command[0], command[1:]...)
			cmd.Dir = filepath.Join(testkit.Root(t), "web")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
