// Package cli is shoalctl: the commands, flags, help and completion that follow from the registry of operations, and how
// answers, errors and waiting look on a terminal and in scripts.
//
// # What it guarantees
//
// Standard output has the answer and nothing else; what is told beside it goes to standard error. Every failure ends with
// one of the exit codes of [ExitCodes]. With -o json or yaml, get prints the resource, list an array of resources, and a
// write the reply. A write that got no answer is repeated with the same request id, and done once.
//
// # What it leaves to others
//
// What can be asked is declared in package api; nothing here knows a kind, but for the keys of hosts, which are made here
// so that they never travel.
package cli
