// Package linux has the tests of installing Shoal on a Linux that is already there: plain Debians, started whole with systemd, each in
// namespaces of its own, with the real binaries and real packages. They are apart from the other end-to-end tests, since they need a Debian
// that is made first: ./scripts/task e2e-linux.
package linux
