package resource

import "shoal/desired"

// DomainRef is the item of a VM.
func DomainRef(vm string) desired.Ref { return desired.Ref{Kind: desired.KindDomain, ID: vm} }

// VolumeRef is the item of a volume.
func VolumeRef(volume string) desired.Ref { return desired.Ref{Kind: desired.KindVolume, ID: volume} }

// PoolRef is the item of a storage.
func PoolRef(storage string) desired.Ref { return desired.Ref{Kind: desired.KindPool, ID: storage} }

// NetDevRef is the item of a layer 2 network.
func NetDevRef(l2 string) desired.Ref { return desired.Ref{Kind: desired.KindNetDev, ID: l2} }

// DHCPRef is the item of a layer 3 network.
func DHCPRef(l3 string) desired.Ref { return desired.Ref{Kind: desired.KindDHCP, ID: l3} }

// AddrSetRef is the item of a security group's members.
func AddrSetRef(group string) desired.Ref { return desired.Ref{Kind: desired.KindAddrSet, ID: group} }

// SecGroupRef is the item of a NIC's packet filter.
func SecGroupRef(nic string) desired.Ref { return desired.Ref{Kind: desired.KindSecGroup, ID: nic} }

// ImageRef is the item of an image in a storage's cache. Its id is the first 8 characters of the storage's, a hyphen, and
// the image's, so that it is a token.
func ImageRef(storage, image string) desired.Ref {
	return desired.Ref{Kind: desired.KindImage, ID: storage[:min(8, len(storage))] + "-" + image}
}

// VolumeHost is the host whose document names a volume now, or "".
func VolumeHost(r Reader, v *Volume) string {
	switch {
	case v.Expunging:
		return v.TombstoneHostID
	case v.HostID != "":
		return v.HostID
	case v.VMID != "":
		if vm, ok := Find[*VM](r, v.VMID); ok {
			return vm.HostID
		}
	}
	return ""
}

// Current is what a host reported of an item, if that is about the item as it stands: the resource that it was rendered
// from has been published (rev is that resource's), and the agent has acted on that revision.
func Current(r Reader, host string, ref desired.Ref, rev uint64) (desired.Status, bool) {
	o := r.Observed()
	if o.PublishedSeq() < rev {
		return desired.Status{}, false
	}
	p, ok := o.Published(host, ref)
	if !ok {
		return desired.Status{}, false
	}
	st, ok := o.Status(host, ref)
	return st, ok && st.Rev >= p.Rev
}

// Gone reports whether a host has confirmed that it has nothing left of an item that was taken out of its document by
// the change of rev: the document without it is accepted, and no status of it is left.
func Gone(r Reader, host string, ref desired.Ref, rev uint64) bool {
	o := r.Observed()
	if o.PublishedSeq() < rev {
		return false
	}
	if _, ok := o.Published(host, ref); ok {
		return false
	}
	if _, ok := o.Status(host, ref); ok {
		return false
	}
	h := o.Host(host)
	return h.Connected && h.Reported && h.Facts.Gen >= o.PublishedGen(host)
}

// domainFacts is what a host reported of a VM's domain as it stands.
func domainFacts(r Reader, vm *VM) (desired.DomainFacts, desired.Status, bool) {
	st, ok := Current(r, vm.HostID, DomainRef(vm.ID), vm.Rev)
	if !ok {
		return desired.DomainFacts{}, st, false
	}
	f, err := desired.DecodeFacts[desired.DomainFacts](st)
	return f, st, err == nil
}

// ConfirmedOff reports whether a VM is certainly not running: its host says so of the VM as it stands now, and will not
// start it by itself, or no host was ever asked to run it.
func ConfirmedOff(r Reader, vm *VM) bool {
	if vm.Power != desired.PowerOff {
		return false
	}
	if !vm.Ran {
		return true
	}
	f, st, ok := domainFacts(r, vm)
	return ok && st.Phase == desired.PhaseReady && f.State == desired.StateShutoff
}
