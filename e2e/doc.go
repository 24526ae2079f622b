// Package e2e tests Shoal as its users and operators meet it: the real binaries, real libvirt, dnsmasq, iptables and
// NFS, guests that really boot, on hosts that are namespaces of this machine (scripts/box). It imports nothing of ours
// but the contracts, subjects and desired.
//
// All tests of a run share one bed, because its parts take seconds to start; each test makes what it needs under a name
// of its own and takes it away again. What a test breaks (an agent, a host, the controller) it also mends.
//
// It needs root and the packages of scripts/setup, and the binaries and guests that `./scripts/task test-e2e` builds.
package e2e
