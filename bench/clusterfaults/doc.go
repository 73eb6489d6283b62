// Package clusterfaults has tests that run a cluster of real processes and kill, stop and cut
// them off. `make cluster-faults` and `make cluster-upgrade` run them.
package clusterfaults
