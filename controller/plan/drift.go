package plan

import (
	"encoding/json"

	"shoal/controller/resource"
	"shoal/desired"
)

// adoptVM takes over what others have done to a VM, where its host's policy is to adopt and the host has said in a spec what it
// found. Whether it runs is all that is taken over; what differs otherwise stays held.
func adoptVM(r resource.Reader, vm *resource.VM) decision {
	found, ok := foundDomain(r, vm)
	if !ok || found.Power == vm.Power || found.CPUs != vm.CPUs || found.MemoryMiB != vm.MemoryMiB {
		return nil
	}
	return func(tx resource.Tx) error {
		vm := resource.Copy(vm)
		if vm.Power == desired.PowerOff {
			// Somebody has started it: from now on it is to run, also after what stops it next.
			vm.Ran = true
			vm.Wish++
		}
		vm.Power, vm.Force, vm.Act = found.Power, false, nil
		return tx.Put(vm)
	}
}

// foundDomain is what a host found in place of a VM's domain, if that is to be taken over and about the VM as it stands.
func foundDomain(r resource.Reader, vm *resource.VM) (desired.Domain, bool) {
	ref := resource.DomainRef(vm.ID)
	var d desired.Domain
	if st, ok := r.Observed().Status(vm.HostID, ref); !ok || st.Phase != desired.PhaseDrifted || len(st.Found) == 0 {
		return d, false
	}
	h, ok := resource.Find[*resource.Host](r, vm.HostID)
	if !ok || resource.DriftPolicy(r, h, ref.Kind) != desired.PolicyAdopt {
		return d, false
	}
	st, ok := resource.Current(r, vm.HostID, ref, vm.Rev)
	if p, _ := r.Observed().Published(vm.HostID, ref); !ok || st.Rev != p.Rev {
		return d, false
	}
	if json.Unmarshal(st.Found, &d) != nil || d.Validate() != nil {
		return d, false
	}
	return d, true
}
