package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"shoal/controller/resource"
	"shoal/desired"
)

// wantedVolume is a volume that a host must be able to hold.
type wantedVolume struct {
	name  string
	bytes uint64
	root  bool
	// storage is where it must be, or lies already (there); "" lets placement choose.
	storage string
	there   bool
	image   string
	backing *resource.Backing
}

// wanted is what a host must offer to a VM.
type wanted struct {
	vm                  string // the VM's id; if it exists, what it takes on its host is not counted twice
	name                string // the VM's, for people
	zone, cluster, host string
	// only is set when nothing but that host can do, with the reason for the others.
	only, onlyWhy string
	cpus          int
	memoryMiB     int
	strategy      resource.AllocationStrategy
	l3s           []*resource.L3
	volumes       []wantedVolume
}

// choice is a host with a storage for each wanted volume.
type choice struct {
	host     *resource.Host
	storages []*resource.Storage
	use      resource.HostUse
	freeMiB  int64
	totalMiB uint64
}

// placer remembers what storages hold while hosts are compared.
type placer struct {
	tx  resource.Tx
	use map[string]resource.StorageUse
}

// place picks a host, or says for every host why it won't do. It changes nothing.
func place(tx resource.Tx, w wanted) (choice, error) {
	p := &placer{tx: tx, use: map[string]resource.StorageUse{}}
	var fits []choice
	var reasons []resource.Reason
	for h := range resource.All[*resource.Host](tx) {
		if w.host != "" && h.ID != w.host {
			continue
		}
		c, why := p.host(w, h)
		if why != "" {
			reasons = append(reasons, resource.Reason{Kind: resource.KindHost, ID: h.ID, Name: h.Name, Why: why})
			continue
		}
		fits = append(fits, c)
	}
	if len(fits) == 0 {
		slices.SortFunc(reasons, func(a, b resource.Reason) int {
			return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
		})
		e := &resource.Error{Code: resource.CodeCapacity, Field: "host_id", Message: "no host can take the VM", Reasons: reasons}
		if len(reasons) == 0 {
			e.Message, e.Remedy = "there is no host", "add one with shoalctl host add"
		} else {
			e.Remedy = "remove what stands against one of the hosts, or ask for less"
		}
		return choice{}, e
	}
	better := func(a, b choice) int { return cmp.Compare(a.use.Running, b.use.Running) }
	if w.strategy == resource.MostFree {
		better = func(a, b choice) int {
			return cmp.Compare(float64(b.freeMiB)/float64(b.totalMiB), float64(a.freeMiB)/float64(a.totalMiB))
		}
	}
	all := slices.Clone(fits)
	best := slices.MinFunc(fits, better)
	fits = slices.DeleteFunc(fits, func(c choice) bool { return better(best, c) != 0 })
	c := fits[pick(tx, len(fits))]
	if asks, ok := tx.(Placer); ok {
		asks.Placed(explain(w, c, len(fits), all, reasons))
	}
	return c, nil
}

// Placer is a transaction that wants to know where VMs are put, and why.
type Placer interface {
	Placed(p resource.Placement)
}

// explain says why it is c: among fits hosts that are equally good, of all those that would do. reasons are of those that won't.
func explain(w wanted, c choice, fits int, all []choice, reasons []resource.Reason) resource.Placement {
	measure := func(c choice) string {
		if w.strategy == resource.MostFree {
			return fmt.Sprintf("%d MiB of %d MiB of memory are free", c.freeMiB, c.totalMiB)
		}
		return fmt.Sprintf("%d VMs run on it", c.use.Running)
	}
	p := resource.Placement{VMID: w.vm, VM: w.name, HostID: c.host.ID, Host: c.host.Name, Others: slices.Clone(reasons)}
	switch {
	case w.host != "":
		p.Why = "it was asked for, or the VM was there before"
	case len(all) == 1:
		p.Why = "no other host will do"
	case fits > 1:
		p.Why = fmt.Sprintf("%s, as on %d others; chosen by lot", measure(c), fits-1)
	default:
		p.Why = measure(c) + ", which is the best"
	}
	for _, o := range all {
		if o.host.ID != c.host.ID {
			p.Others = append(p.Others, resource.Reason{Kind: resource.KindHost, ID: o.host.ID, Name: o.host.Name, Why: "would do: " + measure(o)})
		}
	}
	slices.SortFunc(p.Others, func(a, b resource.Reason) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	const most = 16
	if more := len(p.Others) - most; more > 0 {
		p.Others = append(p.Others[:most:most], resource.Reason{Kind: resource.KindHost, Name: fmt.Sprintf("and %d more", more), Why: "left out here"})
	}
	return p
}

// pick is a random index; it takes randomness only where there is a choice.
func pick(tx resource.Tx, n int) int {
	if n < 2 {
		return 0
	}
	return int(tx.Uint64() % uint64(n))
}

// host checks one host; why says what stands against it. Cheap checks come first, and those that an operator would
// name first: a host in another cluster is not "short of memory".
func (p *placer) host(w wanted, h *resource.Host) (c choice, why string) {
	tx := p.tx
	if w.only != "" && h.ID != w.only {
		return c, w.onlyWhy
	}
	cl, ok := resource.Find[*resource.Cluster](tx, h.ClusterID)
	if !ok {
		return c, "its cluster is gone"
	}
	if w.zone != "" && cl.ZoneID != w.zone {
		return c, "it is in another zone"
	}
	if w.cluster != "" && cl.ID != w.cluster {
		return c, "it is in another cluster, " + cl.Name
	}
	if z, ok := resource.Find[*resource.Zone](tx, cl.ZoneID); !ok || z.State != resource.Enabled {
		return c, "its zone is disabled"
	}
	if cl.State != resource.Enabled {
		return c, fmt.Sprintf("its cluster %s is disabled", cl.Name)
	}
	if h.State != resource.Enabled {
		return c, "it is disabled"
	}
	if h.Hold != nil {
		return c, "its documents are held back: " + h.Hold.Why + " (see shoalctl ahead list)"
	}
	ob := tx.Observed().Host(h.ID)
	inv := ob.Facts.Inventory
	switch {
	case !ob.Connected:
		return c, "it is not connected"
	case !ob.Reported || inv.CPUs == 0 || inv.MemoryMiB == 0:
		return c, "it has not reported what it is yet"
	case ob.Facts.Ahead:
		return c, "its agent holds a newer document than this controller ever wrote"
	case cl.Arch != "" && inv.Arch != cl.Arch:
		return c, fmt.Sprintf("its processor is %s, and cluster %s is for %s", inv.Arch, cl.Name, cl.Arch)
	case inv.Virt == "":
		return c, strings.TrimSuffix("it has not found out yet how it can run VMs: "+inv.VirtNote, ": ")
	}
	for _, l3 := range w.l3s {
		if why := p.network(h, inv, l3); why != "" {
			return c, why
		}
	}
	u := resource.UseOfHost(tx, h.ID)
	if vm, ok := resource.Find[*resource.VM](tx, w.vm); ok && vm.HostID == h.ID && !resource.ConfirmedOff(tx, vm) {
		u.Running--
		u.CPUs -= vm.CPUs
		u.MemoryMiB -= uint64(vm.MemoryMiB)
	}
	cpus, mem := resource.HostRoom(tx, h, inv, u)
	if int64(w.memoryMiB) > mem {
		return c, fmt.Sprintf("%d MiB of memory are wanted, %d MiB of %d MiB are free (%d MiB are reserved)",
			w.memoryMiB, max(mem, 0), inv.MemoryMiB, resource.ReservedMemoryMiB(inv.MemoryMiB))
	}
	if w.cpus > cpus {
		return c, fmt.Sprintf("%d virtual CPUs are wanted, %d of %d (%d for each of %d processors) are free",
			w.cpus, max(cpus, 0), inv.CPUs*cl.Overcommit(), cl.Overcommit(), inv.CPUs)
	}
	storages, why := p.storages(h, w.volumes)
	if why != "" {
		return c, why
	}
	return choice{host: h, storages: storages, use: u, freeMiB: mem, totalMiB: inv.MemoryMiB}, ""
}

// network says why a host can't have a layer 3 network.
func (p *placer) network(h *resource.Host, inv desired.Inventory, l3 *resource.L3) string {
	l2, ok := resource.Find[*resource.L2](p.tx, l3.L2ID)
	if !ok {
		return fmt.Sprintf("the layer 2 network of %s is gone", l3.Name)
	}
	if l2.Type == resource.L2VXLAN {
		pool, ok := resource.Find[*resource.VXLANPool](p.tx, l2.PoolID)
		if !ok {
			return fmt.Sprintf("the VXLAN pool of network %s is gone", l2.Name)
		}
		i := slices.IndexFunc(pool.Clusters, func(v resource.ClusterVTEP) bool { return v.ClusterID == h.ClusterID })
		if i < 0 {
			return fmt.Sprintf("VXLAN pool %s of network %s is not attached to its cluster", pool.Name, l3.Name)
		}
		if !h.VTEPs[pool.ID].IsValid() {
			return fmt.Sprintf("it has no address in %s, the tunnel network of VXLAN pool %s", pool.Clusters[i].CIDR, pool.Name)
		}
		return ""
	}
	if !slices.Contains(l2.ClusterIDs, h.ClusterID) {
		return fmt.Sprintf("network %s (layer 2 network %s) is not attached to its cluster", l3.Name, l2.Name)
	}
	// A device that is a port of our bridge already need not be offered any more.
	if st, ok := p.tx.Observed().Status(h.ID, resource.NetDevRef(l2.ID)); ok && st.Phase == desired.PhaseReady {
		return ""
	}
	if l2.Device != "" && len(inv.Devices) > 0 && !slices.Contains(inv.Devices, l2.Device) {
		return fmt.Sprintf("it has no network device %s for network %s", l2.Device, l2.Name)
	}
	return ""
}

// storages finds a storage of the host's cluster for each volume. Where none is named, the root volume goes to the local
// storage with the most free space, data volumes to a shared one at random if there is one (S12 of the catalogue).
func (p *placer) storages(h *resource.Host, volumes []wantedVolume) ([]*resource.Storage, string) {
	if len(volumes) == 0 {
		return nil, ""
	}
	var local, shared []*resource.Storage
	for _, s := range slices.SortedFunc(resource.Referrers[*resource.Storage](p.tx, resource.KindCluster, h.ClusterID), byID) {
		if s.Shared() {
			shared = append(shared, s)
		} else {
			local = append(local, s)
		}
	}
	free := func(s *resource.Storage) uint64 {
		f, _, _ := resource.PoolFacts(p.tx, h.ID, s.ID)
		return f.FreeBytes
	}
	slices.SortStableFunc(local, func(a, b *resource.Storage) int { return cmp.Compare(free(b), free(a)) })
	out := make([]*resource.Storage, len(volumes))
	added := map[string]resource.StorageUse{}
	for i, v := range volumes {
		var candidates []*resource.Storage
		if v.storage != "" {
			s, ok := resource.Find[*resource.Storage](p.tx, v.storage)
			if !ok {
				return nil, fmt.Sprintf("the storage of %s is gone", v.name)
			}
			candidates = []*resource.Storage{s}
		} else {
			turned := shared
			if n := pick(p.tx, len(shared)); n > 0 {
				turned = slices.Concat(shared[n:], shared[:n])
			}
			if v.root {
				candidates = slices.Concat(local, turned)
			} else {
				candidates = slices.Concat(turned, local)
			}
		}
		var whys []string
		for _, s := range candidates {
			why := p.storage(h, s, v, added)
			if why == "" {
				out[i] = s
				break
			}
			whys = append(whys, fmt.Sprintf("storage %s %s", s.Name, why))
		}
		switch {
		case out[i] != nil:
		case len(whys) == 0:
			return nil, fmt.Sprintf("its cluster has no storage for %s", v.name)
		default:
			return nil, fmt.Sprintf("no room for %s: %s", v.name, strings.Join(whys, ", "))
		}
	}
	return out, ""
}

// storage says why a storage can't hold a volume for a host. added is what the same VM has put on storages so far.
func (p *placer) storage(h *resource.Host, s *resource.Storage, v wantedVolume, added map[string]resource.StorageUse) string {
	if !slices.Contains(s.ClusterIDs, h.ClusterID) {
		return "is not attached to its cluster"
	}
	if s.State != resource.Enabled && !v.there {
		return "is disabled"
	}
	f, st, ok := resource.PoolFacts(p.tx, h.ID, s.ID)
	switch {
	case ok:
	case st.Fault != nil:
		return "is not ready there: " + st.Fault.Message
	default:
		return "is not known to work there yet"
	}
	if v.there {
		return ""
	}
	key := s.ID
	if !s.Shared() {
		key += "/" + h.ID
	}
	use, ok := p.use[key]
	if !ok {
		use = resource.UseOfStorage(p.tx, s, h.ID)
		p.use[key] = use
	}
	with := use
	if a, ok := added[s.ID]; ok {
		with = a
	}
	with.CachedImages = maps.Clone(with.CachedImages)
	with.VolumeBytes += v.bytes
	if v.backing != nil {
		image := v.image
		if !s.Shared() {
			image = h.ID + "/" + image
		}
		with.CachedImages[image] = v.backing.Bytes
	}
	if resource.StorageRoom(s, f.TotalBytes, with) < 0 {
		return fmt.Sprintf("has %s left to promise, %s are wanted (%s in all, %s reserved, %s promised, %s of images, %gx overprovision)",
			size(max(resource.StorageRoom(s, f.TotalBytes, use), 0)), size(int64(v.bytes)), size(int64(f.TotalBytes)), size(int64(s.ReservedBytes)),
			size(int64(use.VolumeBytes)), size(int64(use.CacheBytes())), s.Overprovision)
	}
	if used := f.TotalBytes - min(f.FreeBytes, f.TotalBytes); float64(used) >= float64(f.TotalBytes)*resource.UseThreshold {
		return fmt.Sprintf("is filled to %d %% of %s, the limit is %d %%", used*100/f.TotalBytes, size(int64(f.TotalBytes)), int(resource.UseThreshold*100))
	}
	added[s.ID] = with
	return ""
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}
