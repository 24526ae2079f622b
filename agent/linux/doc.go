// Package linux makes a Linux that is already there a host, and takes that back. How a bare machine becomes one is agent/metal's; both write what
// desired/layout says.
//
//	Preflight ─▶ all that would stand in the way, each with what to do about it
//	Install   ─▶ packages ─▶ program, unit, kernel settings, clock ─▶ join ─▶ start
//	Uninstall ─▶ guests ─▶ agent ─▶ what the agent has built ─▶ files
//
// Nothing is changed, but for the lists of packages that there are, where Preflight finds something that stands in the way. Each step
// finds what an earlier run has done, so that a run that was cut off is repeated.
//
// It needs systemd. Packages are installed on Debian and what derives from it; elsewhere they must be there.
package linux
