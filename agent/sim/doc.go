// Package sim holds stateful models of what an agent drives on a host. A model implements the interface that its kind
// names, and has methods for what guests, operators and accidents do. Models are for tests and for simulated fleets: each
// passes the same conformance suite as the real thing, which is what makes them worth believing.
package sim
