package plan

import (
	"shoal/controller/resource"
	"shoal/desired"
)

// adoptVM takes over what others have done to a VM, where its host's policy is to adopt and the host has said in a spec what it
// found: whether it runs, and its processors, memory and CPU model. What the host has no room for stays held.
func adoptVM(r resource.Reader, vm *resource.VM) decision {
	found, ok := resource.FoundDomain(r, vm)
	if !ok || resource.Untakeable(r, vm, found) != "" {
		return nil
	}
	if found.Power == vm.Power && found.CPUs == vm.CPUs && found.MemoryMiB == vm.MemoryMiB && found.CPUMode == vm.CPUMode {
		return nil
	}
	return func(tx resource.Tx) error {
		vm := resource.Copy(vm)
		vm.CPUs, vm.MemoryMiB, vm.CPUMode = found.CPUs, found.MemoryMiB, found.CPUMode
		if found.Power != vm.Power {
			if vm.Power == desired.PowerOff {
				// Somebody has started it: from now on it is to run, also after what stops it next.
				vm.Ran = true
				vm.Wish++
			}
			vm.Power, vm.Force, vm.Act = found.Power, false, nil
		}
		return tx.Put(vm)
	}
}
