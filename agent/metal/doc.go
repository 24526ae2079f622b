// Package metal makes a bare machine a host: it is the program that an installation medium starts.
//
//	firmware ─▶ GRUB ─▶ kernel, initramfs ─▶ Boot: finds the medium, mounts its root file system ─▶ Run: installs ─▶ restart
//
// The root file system on the medium is both what Run works in (its tools are those of the installed system) and what it unpacks. What is to be
// done is decided by agent/metal/plan before anything is written; Run carries it out, step by step, on every console of the machine.
//
// It guarantees that nothing is written before the whole kickstart has been understood, the medium has been read and found
// undamaged, and the plan has been made; that an installation which did not come to its end is taken up by starting the medium
// again, from the beginning; that one which did is not repeated by a medium that was left in the drive; and that the join token
// is readable by root alone. A mistake in the kickstart is said with its line, on the screen and on the serial console.
package metal
