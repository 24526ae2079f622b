package resource

import "shoal/desired"

// What hosts and storages may be filled with.
const (
	// DefaultCPUOvercommit is how many virtual CPUs a processor of a host may carry, where its cluster does not say.
	DefaultCPUOvercommit = 10
	// UseThreshold is the share of a file system up to which it is filled.
	UseThreshold = 0.9
	// DefaultReservedBytes of a storage are never promised.
	DefaultReservedBytes = 1 << 30
)

// ReservedMemoryMiB is what a host keeps for itself: 1 GiB, or a tenth of a small machine.
func ReservedMemoryMiB(total uint64) uint64 { return min(1024, total/10) }

// HostUse is what the VMs of a host take.
type HostUse struct {
	// VMs are all that belong to it, Running those that run or may be running.
	VMs       int
	Running   int
	CPUs      int
	MemoryMiB uint64
}

// UseOfHost sums up the VMs of a host. A VM counts until its host has confirmed that it is off.
func UseOfHost(r Reader, host string) HostUse {
	var u HostUse
	for vm := range Referrers[*VM](r, KindHost, host) {
		if vm.HostID != host {
			continue
		}
		u.VMs++
		if vm.Undefine || ConfirmedOff(r, vm) {
			continue
		}
		u.Running++
		u.CPUs += vm.CPUs
		u.MemoryMiB += uint64(vm.MemoryMiB)
	}
	return u
}

// HostRoom is what a host can take more, by what it reported of itself.
func HostRoom(r Reader, h *Host, inv desired.Inventory, u HostUse) (cpus int, memoryMiB int64) {
	overcommit := DefaultCPUOvercommit
	if c, ok := Find[*Cluster](r, h.ClusterID); ok {
		overcommit = c.Overcommit()
	}
	return inv.CPUs*overcommit - u.CPUs, int64(inv.MemoryMiB-ReservedMemoryMiB(inv.MemoryMiB)) - int64(u.MemoryMiB)
}

// StorageUse is what is promised on a storage, or, with local storages, on a storage's part on one host.
type StorageUse struct {
	Volumes      int
	VolumeBytes  uint64
	CachedImages map[string]uint64 // bytes by image id
}

// UseOfStorage sums up the volumes of a storage; of a local one, those on host, or on all hosts if that is "".
// Volumes in the recycle bin count, for their files are there.
func UseOfStorage(r Reader, s *Storage, host string) StorageUse {
	u := StorageUse{CachedImages: map[string]uint64{}}
	from, id := KindStorage, s.ID
	if !s.Shared() && host != "" {
		from, id = KindHost, host
	}
	for v := range Referrers[*Volume](r, from, id) {
		if v.StorageID != s.ID || from == KindHost && v.HostID != host {
			continue
		}
		u.Volumes++
		u.VolumeBytes += v.Bytes
		if v.Backing != nil {
			key := v.ImageID
			if !s.Shared() {
				key = v.HostID + "/" + key
			}
			u.CachedImages[key] = v.Backing.Bytes
		}
	}
	return u
}

// CacheBytes is the size of the images in the cache.
func (u StorageUse) CacheBytes() uint64 {
	var n uint64
	for _, b := range u.CachedImages {
		n += b
	}
	return n
}

// StorageRoom is how many more bytes may be promised to volumes on a storage of that size; negative when too much is.
func StorageRoom(s *Storage, total uint64, u StorageUse) int64 {
	usable := int64(total) - int64(s.ReservedBytes) - int64(u.CacheBytes())
	return int64(float64(usable)*s.Overprovision) - int64(u.VolumeBytes)
}

// PoolFacts is what a host reports of a storage; ok is false unless the storage is Ready there.
func PoolFacts(r Reader, host, storage string) (f desired.PoolFacts, st desired.Status, ok bool) {
	st, ok = r.Observed().Status(host, PoolRef(storage))
	if !ok || st.Phase != desired.PhaseReady || len(st.Facts) == 0 {
		return f, st, false
	}
	f, err := desired.DecodeFacts[desired.PoolFacts](st)
	return f, st, err == nil && f.TotalBytes > 0
}
