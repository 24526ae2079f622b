// Package iso tests installation media as their users meet them: machines of QEMU with blank disks, with full ones, with a power cut in the middle. It
// imports nothing of ours but the contract: what a machine says on its serial console decides.
//
// It needs what `./scripts/task e2e-iso` makes (the image, the programs, QEMU) and some ten minutes, since the machines are emulated instruction by instruction. It
// is no part of `./scripts/task test`, and skips itself there, saying so.
package iso
