package api

import (
	"fmt"
	"net/netip"

	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/desired"
)

func offerings(g *Registry) {
	readable(g, resource.KindOffering, "'memory_mib>=1024'",
		Column{Title: "NAME", Path: "name"}, Column{Title: "CPUS", Path: "cpus"}, Column{Title: "MEMORY", Path: "memory_mib", As: "mib"},
		Column{Title: "STATE", Path: "state"}, Column{Title: "STRATEGY", Path: "strategy", Wide: true}, age(), idColumn())
	type offeringCreate struct {
		meta
		CPUs     int    `json:"cpus" flag:"cpu" required:"true" help:"number of virtual processors"`
		Memory   Size   `json:"memory" required:"true" help:"memory, such as 512MiB"`
		Strategy string `json:"strategy,omitempty" enum:"fewest-vms|most-free" help:"how a host is picked among those that fit (fewest-vms)"`
	}
	writes(g, Operation{
		Kind: resource.KindOffering, Verb: "create", Summary: "Create an instance offering", Help: "A size of VMs. Changing it later changes no VM.",
		Example: "shoalctl offering create small --cpu 1 --memory 512MiB",
	}, func(tx resource.Tx, p *offeringCreate) (Outcome, error) {
		mib, err := memoryMiB(p.Memory)
		if err != nil {
			return Outcome{}, err
		}
		o := &resource.Offering{Meta: p.base(tx), State: resource.Enabled, CPUs: p.CPUs, MemoryMiB: mib, Strategy: resource.FewestVMs}
		if p.Strategy != "" {
			o.Strategy = resource.AllocationStrategy(p.Strategy)
		}
		return create(tx, o)
	})
	type offeringUpdate struct {
		getParams
		metaChange
		CPUs     *int    `json:"cpus,omitempty" flag:"cpu" help:"number of virtual processors"`
		Memory   *Size   `json:"memory,omitempty" help:"memory"`
		Strategy *string `json:"strategy,omitempty" enum:"fewest-vms|most-free" help:"how a host is picked among those that fit"`
	}
	updatable(g, "small --memory 1GiB", "VMs that were made from it keep their size.", func(p *offeringUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *offeringUpdate, o *resource.Offering) error {
			set(&o.CPUs, p.CPUs)
			set(&o.Strategy, (*resource.AllocationStrategy)(p.Strategy))
			if p.Memory != nil {
				mib, err := memoryMiB(*p.Memory)
				if err != nil {
					return err
				}
				o.MemoryMiB = mib
			}
			return nil
		})
	switchable(g, "", func(o *resource.Offering) *resource.State { return &o.State }, nil)
	deletable(g, resource.KindOffering, "VMs that were made from it stay.")

	readable(g, resource.KindDiskOffering, "state=enabled",
		Column{Title: "NAME", Path: "name"}, Column{Title: "SIZE", Path: "bytes", As: "size"}, Column{Title: "STATE", Path: "state"}, age(), idColumn())
	type diskOfferingCreate struct {
		meta
		Size Size `json:"size" required:"true" help:"size of volumes, such as 10GiB"`
	}
	writes(g, Operation{
		Kind: resource.KindDiskOffering, Verb: "create", Summary: "Create a disk offering", Help: "A size of volumes. Changing it later changes no volume.",
		Example: "shoalctl diskoffering create d10 --size 10GiB",
	}, func(tx resource.Tx, p *diskOfferingCreate) (Outcome, error) {
		return create(tx, &resource.DiskOffering{Meta: p.base(tx), State: resource.Enabled, Bytes: uint64(p.Size)})
	})
	type diskOfferingUpdate struct {
		getParams
		metaChange
		Size *Size `json:"size,omitempty" help:"size of volumes"`
	}
	updatable(g, "d10 --size 20GiB", "Volumes that were made from it keep their size.", func(p *diskOfferingUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *diskOfferingUpdate, o *resource.DiskOffering) error {
			set(&o.Bytes, (*uint64)(p.Size))
			return nil
		})
	switchable(g, "", func(o *resource.DiskOffering) *resource.State { return &o.State }, nil)
	deletable(g, resource.KindDiskOffering, "Volumes that were made from it stay.")
}

// networkOptions ask for a NIC.
type networkOptions struct {
	L3        string     `json:"l3" bare:"true" ref:"l3" use:"true" required:"true" help:"L3 network"`
	IP        netip.Addr `json:"ip,omitzero" help:"address; chosen where not given"`
	MAC       string     `json:"mac,omitempty" help:"MAC; chosen where not given"`
	Model     string     `json:"model,omitempty" enum:"virtio|e1000|rtl8139" help:"device model (virtio)"`
	Default   bool       `json:"default,omitempty" help:"make it the VM's default NIC"`
	AntiSpoof bool       `json:"anti_spoof,omitempty" help:"let pass nothing but its own MAC and address"`
	Groups    []string   `json:"secgroups,omitempty" ref:"secgroup" use:"true" help:"security group of this NIC"`
}

func (n networkOptions) spec(groups []string) plan.NICSpec {
	all := append(append([]string{}, groups...), n.Groups...)
	return plan.NICSpec{L3ID: n.L3, IP: n.IP, MAC: n.MAC, Model: n.Model, Default: n.Default, AntiSpoof: n.AntiSpoof, SecGroupIDs: all}
}

// diskOptions ask for a data volume.
type diskOptions struct {
	Size     Size   `json:"size,omitempty" bare:"true" help:"size, or that of the disk offering"`
	Offering string `json:"offering,omitempty" ref:"diskoffering" use:"true" help:"disk offering"`
	Name     string `json:"name,omitempty" help:"name"`
	Storage  string `json:"storage,omitempty" ref:"storage" use:"true" help:"primary storage"`
	Format   string `json:"format,omitempty" enum:"qcow2|raw" help:"format (qcow2)"`
}

func (d diskOptions) spec(owner string) plan.VolumeSpec {
	return plan.VolumeSpec{Name: d.Name, Owner: owner, Bytes: uint64(d.Size), DiskOfferingID: d.Offering, StorageID: d.Storage, Format: desired.Format(d.Format)}
}

type vmCreate struct {
	meta
	Image        string           `json:"image,omitempty" short:"i" ref:"image" use:"true" help:"image that its root volume starts from"`
	Offering     string           `json:"offering,omitempty" ref:"offering" use:"true" help:"instance offering, or --cpu and --memory"`
	CPUs         int              `json:"cpus,omitempty" flag:"cpu" help:"number of virtual processors"`
	Memory       Size             `json:"memory,omitempty" help:"memory, such as 512MiB"`
	Strategy     string           `json:"strategy,omitempty" enum:"fewest-vms|most-free" help:"how a host is picked among those that fit"`
	Networks     []networkOptions `json:"networks,omitempty" short:"n" flag:"network" help:"L3 network of a NIC, with options: net1,ip=10.1.0.5,mac=52:54:00:00:00:05,default"`
	SecGroups    []string         `json:"secgroups,omitempty" flag:"secgroup" ref:"secgroup" use:"true" help:"security group of all its NICs"`
	Disks        []diskOptions    `json:"disks,omitempty" flag:"disk" help:"data volume, with options: 10GiB,name=data or offering=d10,storage=nfs"`
	RootSize     Size             `json:"root_size,omitempty" help:"size of the root volume; the image's where not given"`
	RootOffering string           `json:"root_offering,omitempty" ref:"diskoffering" use:"true" help:"disk offering of the root volume"`
	Diskless     bool             `json:"diskless,omitempty" help:"make no root volume"`
	Storage      string           `json:"storage,omitempty" ref:"storage" use:"true" help:"primary storage of the root volume; chosen where not given"`
	Host         string           `json:"host,omitempty" ref:"host" use:"true" help:"host to run on; chosen where not given"`
	Cluster      string           `json:"cluster,omitempty" ref:"cluster" use:"true" help:"cluster to run in"`
	Zone         string           `json:"zone,omitempty" ref:"zone" use:"true" help:"zone to run in"`
	Hostname     string           `json:"hostname,omitempty" help:"host name that the guest is told by DHCP"`
	Machine      string           `json:"machine,omitempty" enum:"pc|q35" help:"machine type"`
	CPUMode      string           `json:"cpu_mode,omitempty" enum:"none|host-model|host-passthrough" help:"model of the virtual processors"`
	StopSeconds  *int             `json:"stop_seconds,omitempty" help:"how long the guest has to obey when it is stopped, in seconds"`
	Stopped      bool             `json:"stopped,omitempty" help:"leave it off"`
	Count        int              `json:"count,omitempty" help:"make that many, named NAME-1, NAME-2, ...: all of them or none"`
}

// maxCount is how many VMs one request may ask for. They share one transaction, and that is one message.
const maxCount = 100

func (p *vmCreate) specs(tx resource.Tx) ([]plan.VMSpec, error) {
	if p.Count < 0 || p.Count > maxCount {
		return nil, resource.Invalid("count", "%d is not within 1..%d", p.Count, maxCount)
	}
	if p.Diskless && (p.Image != "" || p.RootSize != 0 || p.RootOffering != "" || p.Storage != "") {
		return nil, resource.Invalid("diskless", "a VM without a root volume has no image, root_size, root_offering or storage")
	}
	if !p.Diskless && p.Image == "" && p.RootSize == 0 && p.RootOffering == "" {
		return nil, resource.Invalid("image", "must be given").WithRemedy("give --image, or --root-size for an empty root volume, or --diskless for none")
	}
	mib, err := memoryMiB(p.Memory)
	if err != nil {
		return nil, err
	}
	owner := tx.Request().Owner()
	spec := plan.VMSpec{
		Name: p.Name, Description: p.Description, Owner: owner, Tags: p.Tags, ZoneID: p.Zone, ClusterID: p.Cluster, HostID: p.Host,
		OfferingID: p.Offering, CPUs: p.CPUs, MemoryMiB: mib, Strategy: resource.AllocationStrategy(p.Strategy), ImageID: p.Image,
		RootBytes: uint64(p.RootSize), RootOfferingID: p.RootOffering, RootStorageID: p.Storage, Hostname: p.Hostname, Machine: p.Machine,
		CPUMode: p.CPUMode, StopSeconds: p.StopSeconds, Stopped: p.Stopped,
	}
	for i, n := range p.Networks {
		if p.Count > 1 && (n.IP.IsValid() || n.MAC != "") {
			return nil, resource.Invalid(fmt.Sprintf("networks[%d].ip", i), "one address or MAC can't be given to %d VMs", p.Count)
		}
		spec.NICs = append(spec.NICs, n.spec(p.SecGroups))
	}
	if len(p.SecGroups) > 0 && len(p.Networks) == 0 {
		return nil, resource.Invalid("secgroups", "security groups belong to NICs, and the VM has none").WithRemedy("give --network")
	}
	for _, d := range p.Disks {
		spec.DataVolumes = append(spec.DataVolumes, d.spec(owner))
	}
	if p.Count <= 1 {
		return []plan.VMSpec{spec}, nil
	}
	out := make([]plan.VMSpec, p.Count)
	for i := range out {
		out[i] = spec
		out[i].Name = fmt.Sprintf("%s-%d", p.Name, i+1)
		if p.Hostname != "" {
			out[i].Hostname = fmt.Sprintf("%s-%d", p.Hostname, i+1)
		}
	}
	return out, nil
}

func vms(g *Registry) {
	columns := []Column{
		{Title: "NAME", Path: "name"},
		{Title: "STATE", Path: "status.state"},
		{Title: "HOST", Path: "status.host"},
		{Title: "IPS", Path: "status.ips"},
		{Title: "CPUS", Path: "cpus"},
		{Title: "MEMORY", Path: "memory_mib", As: "mib"},
		{Title: "POWER", Path: "power", Wide: true},
		{Title: "IMAGE", Path: "names.image_id", Wide: true},
		{Title: "OFFERING", Path: "names.offering_id", Wide: true},
		{Title: "FAULT", Path: "status.fault.message", Wide: true},
		age(), idColumn(),
	}
	readable(g, resource.KindVM, "nic.ip=10.1.0.5", columns...)
	writes(g, Operation{
		Kind: resource.KindVM, Verb: "create", Aliases: []string{"run"}, Task: true, Summary: "Create VMs",
		Help: "Host, storage, addresses and MACs that are not given are chosen. It is made whole or refused at once, with a reason for every host that was ruled out. " +
			"It is started unless --stopped is given.",
		Example: "shoalctl vm create web --image tiny --offering small --network net1 --wait\n" +
			"shoalctl vm create db --image tiny --cpu 2 --memory 4GiB --network net1,ip=10.1.0.5 --secgroup db --disk 100GiB,name=db-data",
	}, func(tx resource.Tx, p *vmCreate) (Outcome, error) {
		specs, err := p.specs(tx)
		if err != nil {
			return Outcome{}, err
		}
		out := Outcome{}
		for _, s := range specs {
			vm, err := plan.CreateVM(tx, s)
			if err != nil {
				return out, err
			}
			out.Resources = append(out.Resources, vm)
		}
		return out, nil
	})
	type vmUpdate struct {
		getParams
		metaChange
		CPUs        *int    `json:"cpus,omitempty" flag:"cpu" help:"number of virtual processors; the VM must be stopped"`
		Memory      *Size   `json:"memory,omitempty" help:"memory; the VM must be stopped"`
		Hostname    *string `json:"hostname,omitempty" help:"host name that the guest is told by DHCP"`
		Machine     *string `json:"machine,omitempty" enum:"pc|q35" help:"machine type"`
		CPUMode     *string `json:"cpu_mode,omitempty" enum:"none|host-model|host-passthrough" help:"model of the virtual processors"`
		StopSeconds *int    `json:"stop_seconds,omitempty" help:"how long the guest has to obey when it is stopped, in seconds"`
	}
	updatable(g, "web --stop-seconds 120", "What can't change while it runs shows under status.pending until the next start.",
		func(p *vmUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *vmUpdate, vm *resource.VM) error {
			set(&vm.CPUs, p.CPUs)
			set(&vm.Hostname, p.Hostname)
			set(&vm.Machine, p.Machine)
			set(&vm.CPUMode, p.CPUMode)
			set(&vm.StopSeconds, p.StopSeconds)
			if p.Memory != nil {
				mib, err := memoryMiB(*p.Memory)
				if err != nil {
					return err
				}
				vm.MemoryMiB = mib
			}
			return nil
		})
	type vmStart struct {
		ID   string `json:"id" arg:"1" required:"true" ref:"vm" help:"id or unique name"`
		Host string `json:"host,omitempty" ref:"host" use:"true" help:"host to start on; chosen where not given"`
	}
	writes(g, Operation{
		Kind: resource.KindVM, Verb: "start", Task: true, Summary: "Start a VM",
		Help:    "A stopped VM on shared storage starts on any host that fits, on local storage on its disk's host. Refused with a reason for every host that was ruled out.",
		Example: "shoalctl vm start web --wait",
	}, func(tx resource.Tx, p *vmStart) (Outcome, error) { return did(plan.StartVM(tx, p.ID, p.Host)) })
	type vmStop struct {
		ID      string `json:"id" arg:"1" required:"true" ref:"vm" help:"id or unique name"`
		Seconds int    `json:"seconds,omitempty" help:"how long the guest has to obey, in seconds; the VM's own setting where not given"`
		Force   bool   `json:"force,omitempty" help:"do not ask the guest"`
	}
	writes(g, Operation{
		Kind: resource.KindVM, Verb: "stop", Class: Dangerous, Task: true, Summary: "Stop a VM",
		Help:    "The guest is asked by ACPI; one that has not obeyed after its time is powered off.",
		Example: "shoalctl vm stop web --seconds 60 --wait",
	}, func(tx resource.Tx, p *vmStop) (Outcome, error) {
		if p.Seconds < 0 {
			return Outcome{}, resource.Invalid("seconds", "%d is negative", p.Seconds)
		}
		return did(plan.StopVM(tx, p.ID, plan.StopOptions{Force: p.Force, Seconds: p.Seconds}))
	})
	vmVerb(g, "poweroff", Dangerous, "Power a VM off", "At once, without asking the guest.",
		func(tx resource.Tx, id string) (*resource.VM, error) {
			return plan.StopVM(tx, id, plan.StopOptions{Force: true})
		})
	vmVerb(g, "reboot", Dangerous, "Reboot a VM", "It is stopped like with stop and started with its current settings, so that pending changes take effect.", plan.RebootVM)
	vmVerb(g, "reset", Dangerous, "Reset a VM", "At once, without asking the guest.", plan.ResetVM)
	vmVerb(g, "pause", Write, "Pause a VM", "Its processors stop; its memory stays.", plan.PauseVM)
	vmVerb(g, "resume", Write, "Resume a paused VM", "Its processors go on where they stopped.", plan.ResumeVM)
	vmVerb(g, "recover", Write, "Take a VM out of the recycle bin", "It is stopped then, with its root volume and addresses.", plan.RecoverVM)
	vmVerb(g, "expunge", Dangerous, "Remove a destroyed VM for good", "Its root volume is removed from its storage. Data volumes stay.", plan.ExpungeVM)
	type vmDestroy struct {
		ID    string `json:"id" arg:"1" required:"true" ref:"vm" help:"id or unique name"`
		Force bool   `json:"force,omitempty" help:"power it off without asking the guest"`
	}
	writes(g, Operation{
		Kind: resource.KindVM, Verb: "destroy", Class: Dangerous, Task: true, Summary: "Put a VM into the recycle bin",
		Help:    "It is stopped and its data volumes are detached; root volume and addresses stay until it is expunged, by hand or after a day. Until then recover brings it back.",
		Example: "shoalctl vm destroy web --wait",
	}, func(tx resource.Tx, p *vmDestroy) (Outcome, error) {
		if p.Force {
			vm, err := resource.Get[*resource.VM](tx, p.ID)
			if err != nil {
				return Outcome{}, err
			}
			if vm.Power != desired.PowerOff && vm.Destroyed.IsZero() {
				if _, err := plan.StopVM(tx, p.ID, plan.StopOptions{Force: true}); err != nil {
					return Outcome{}, err
				}
			}
		}
		return did(plan.DestroyVM(tx, p.ID))
	})
	deletable(g, resource.KindVM, "A VM goes at once and for good, without a stay in the recycle bin, once its host has confirmed that it is off.")
}

type vmParams struct {
	ID string `json:"id" arg:"1" required:"true" ref:"vm" help:"id or unique name"`
}

func vmVerb(g *Registry, verb string, class Class, summary, help string, run func(tx resource.Tx, id string) (*resource.VM, error)) {
	writes(g, Operation{
		Kind: resource.KindVM, Verb: verb, Class: class, Task: true, Summary: summary, Help: help, Example: "shoalctl vm " + verb + " web --wait",
	}, func(tx resource.Tx, p *vmParams) (Outcome, error) { return did(run(tx, p.ID)) })
}

func volumes(g *Registry) {
	readable(g, resource.KindVolume, "vm.name=web",
		Column{Title: "NAME", Path: "name"}, Column{Title: "TYPE", Path: "type"}, Column{Title: "STATUS", Path: "status.state"}, Column{Title: "SIZE", Path: "bytes", As: "size"},
		Column{Title: "VM", Path: "names.vm_id"}, Column{Title: "TARGET", Path: "target"}, Column{Title: "STORAGE", Path: "names.storage_id"},
		Column{Title: "HOST", Path: "status.host", Wide: true}, Column{Title: "USED", Path: "status.actual_bytes", As: "size", Wide: true},
		Column{Title: "FORMAT", Path: "format", Wide: true}, Column{Title: "FAULT", Path: "status.fault.message", Wide: true}, age(), idColumn())
	type volumeCreate struct {
		meta
		Zone         string `json:"zone,omitempty" ref:"zone" use:"true" help:"zone that it is in"`
		Size         Size   `json:"size,omitempty" help:"size, such as 10GiB, or --diskoffering"`
		DiskOffering string `json:"diskoffering,omitempty" ref:"diskoffering" use:"true" help:"disk offering"`
		Storage      string `json:"storage,omitempty" ref:"storage" use:"true" help:"primary storage; chosen at the first attachment where not given"`
		Host         string `json:"host,omitempty" ref:"host" use:"true" help:"host, with a local storage"`
		Format       string `json:"format,omitempty" enum:"qcow2|raw" help:"format (qcow2)"`
	}
	writes(g, Operation{
		Kind: resource.KindVolume, Verb: "create", Task: true, Summary: "Create a data volume",
		Help:    "Without --storage it takes no space before it is attached for the first time.",
		Example: "shoalctl volume create data --zone z1 --size 10GiB",
	}, func(tx resource.Tx, p *volumeCreate) (Outcome, error) {
		return did(plan.CreateVolume(tx, plan.VolumeSpec{
			Name: p.Name, Description: p.Description, Owner: tx.Request().Owner(), Tags: p.Tags, ZoneID: p.Zone, Bytes: uint64(p.Size),
			DiskOfferingID: p.DiskOffering, StorageID: p.Storage, HostID: p.Host, Format: desired.Format(p.Format),
		}))
	})
	updatable[*resource.Volume](g, "data --name archive", "See resize for its size.", metaUpdateParts, nil)
	switchable(g, "", func(v *resource.Volume) *resource.State { return &v.State }, nil)
	type volumeAttach struct {
		ID string `json:"id" arg:"1" required:"true" ref:"volume" help:"id or unique name"`
		VM string `json:"vm" required:"true" ref:"vm" help:"VM that gets it"`
	}
	writes(g, Operation{
		Kind: resource.KindVolume, Verb: "attach", Task: true, Summary: "Attach a data volume to a VM", Help: "The VM may run or be stopped.",
		Example: "shoalctl volume attach data --vm web --wait",
	}, func(tx resource.Tx, p *volumeAttach) (Outcome, error) { return did(plan.AttachVolume(tx, p.ID, p.VM)) })
	type volumeResize struct {
		ID   string `json:"id" arg:"1" required:"true" ref:"volume" help:"id or unique name"`
		Size Size   `json:"size" required:"true" help:"new size, larger than the present one"`
	}
	writes(g, Operation{
		Kind: resource.KindVolume, Verb: "resize", Task: true, Summary: "Enlarge a volume", Help: "Root and data volumes, attached or not. A volume never shrinks.",
		Example: "shoalctl volume resize data --size 20GiB --wait",
	}, func(tx resource.Tx, p *volumeResize) (Outcome, error) {
		return did(plan.ResizeVolume(tx, p.ID, uint64(p.Size)))
	})
	volumeVerb(g, "detach", Dangerous, "Detach a data volume from its VM", "The VM may run or be stopped. A guest should have unmounted it.", plan.DetachVolume)
	volumeVerb(g, "destroy", Dangerous, "Put a data volume into the recycle bin", "It stays where it is until it is expunged, by hand or after ten days.", plan.DestroyVolume)
	volumeVerb(g, "recover", Write, "Take a data volume out of the recycle bin", "It is as it was.", plan.RecoverVolume)
	volumeVerb(g, "expunge", Dangerous, "Remove a destroyed data volume for good", "Its file is removed by a host; its record goes when that host has confirmed it.", plan.ExpungeVolume)
	deletable(g, resource.KindVolume, "A data volume goes at once and for good, without a stay in the recycle bin.")
}

type volumeParams struct {
	ID string `json:"id" arg:"1" required:"true" ref:"volume" help:"id or unique name"`
}

func volumeVerb(g *Registry, verb string, class Class, summary, help string, run func(tx resource.Tx, id string) (*resource.Volume, error)) {
	writes(g, Operation{
		Kind: resource.KindVolume, Verb: verb, Class: class, Task: true, Summary: summary, Help: help, Example: "shoalctl volume " + verb + " data --wait",
	}, func(tx resource.Tx, p *volumeParams) (Outcome, error) { return did(run(tx, p.ID)) })
}

func nics(g *Registry) {
	readable(g, resource.KindNIC, "vm.name=web",
		Column{Title: "NAME", Path: "name"}, Column{Title: "VM", Path: "names.vm_id"}, Column{Title: "NETWORK", Path: "names.l3_id"}, Column{Title: "IP", Path: "ip"},
		Column{Title: "MAC", Path: "mac"}, Column{Title: "GROUPS", Path: "names.secgroup_ids"}, Column{Title: "DEFAULT", Path: "default", Wide: true},
		Column{Title: "MODEL", Path: "model", Wide: true}, Column{Title: "ID", Path: "id"})
	type nicAttach struct {
		VM string `json:"vm" required:"true" ref:"vm" help:"VM that gets it"`
		networkOptionsFlat
	}
	writes(g, Operation{
		Kind: resource.KindNIC, Verb: "attach", Aliases: []string{"create"}, Task: true, Summary: "Give a VM a NIC", Help: "The VM may run or be stopped.",
		Example: "shoalctl nic attach --vm web --network net2 --secgroup web --wait",
	}, func(tx resource.Tx, p *nicAttach) (Outcome, error) {
		return did(plan.AttachNIC(tx, p.VM, plan.NICSpec{
			L3ID: p.Network, IP: p.IP, MAC: p.MAC, Model: p.Model, Default: p.Default, AntiSpoof: p.AntiSpoof, SecGroupIDs: p.SecGroups,
		}))
	})
	type nicDetach struct {
		ID string `json:"id" arg:"1" required:"true" ref:"nic" help:"id or unique name"`
	}
	writes(g, Operation{
		Kind: resource.KindNIC, Verb: "detach", Aliases: []string{"delete", "rm"}, Class: Dangerous, Task: true, Summary: "Take a NIC from its VM",
		Help: "The VM may run or be stopped. Its address is free afterwards.", Example: "shoalctl nic detach NIC --wait",
	}, func(tx resource.Tx, p *nicDetach) (Outcome, error) {
		n, err := resource.Get[*resource.NIC](tx, p.ID)
		if err != nil {
			return Outcome{}, err
		}
		return Outcome{
			Deleted: []plan.Deleted{{Kind: resource.KindNIC, ID: n.ID, Name: n.Name, Action: plan.ActionDelete}}, Subject: resource.Ref{Kind: resource.KindVM, ID: n.VMID},
		}, plan.DetachNIC(tx, p.ID)
	})
	type nicGroups struct {
		ID     string   `json:"id" arg:"1" required:"true" ref:"nic" help:"id or unique name"`
		Add    []string `json:"add,omitempty" ref:"secgroup" use:"true" help:"security group to enter"`
		Remove []string `json:"remove,omitempty" ref:"secgroup" use:"true" help:"security group to leave"`
	}
	writes(g, Operation{
		Kind: resource.KindNIC, Verb: "set-groups", Task: true, Summary: "Change the security groups of a NIC", Help: "It acts at once on running VMs.",
		Example: "shoalctl nic set-groups NIC --add web --remove test --wait",
	}, func(tx resource.Tx, p *nicGroups) (Outcome, error) {
		if len(p.Add)+len(p.Remove) == 0 {
			return Outcome{}, resource.Invalid("add", "add or remove must be given")
		}
		return did(plan.SetNICGroups(tx, p.ID, p.Add, p.Remove))
	})
	type nicUpdate struct {
		getParams
		metaChange
		AntiSpoof *bool `json:"anti_spoof,omitempty" help:"let pass nothing but its own MAC and address"`
	}
	updatable(g, "NIC --anti-spoof", "", func(p *nicUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *nicUpdate, n *resource.NIC) error { set(&n.AntiSpoof, p.AntiSpoof); return nil })
}

// networkOptionsFlat are the same as networkOptions, as parameters of their own.
type networkOptionsFlat struct {
	Network   string     `json:"network" ref:"l3" use:"true" short:"n" required:"true" help:"L3 network"`
	IP        netip.Addr `json:"ip,omitzero" help:"address; chosen where not given"`
	MAC       string     `json:"mac,omitempty" help:"MAC; chosen where not given"`
	Model     string     `json:"model,omitempty" enum:"virtio|e1000|rtl8139" help:"device model (virtio)"`
	Default   bool       `json:"default,omitempty" help:"make it the VM's default NIC"`
	AntiSpoof bool       `json:"anti_spoof,omitempty" help:"let pass nothing but its own MAC and address"`
	SecGroups []string   `json:"secgroups,omitempty" flag:"secgroup" ref:"secgroup" use:"true" help:"security group"`
}
