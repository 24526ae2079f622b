package api

import (
	"shoal/controller/plan"
	"shoal/controller/resource"
)

func places(g *Registry) {
	readable(g, resource.KindZone, "state=enabled",
		Column{Title: "NAME", Path: "name"}, Column{Title: "STATE", Path: "state"}, Column{Title: "CLUSTERS", Path: "status.clusters"},
		Column{Title: "HOSTS", Path: "status.hosts"}, Column{Title: "CONNECTED", Path: "status.connected"}, Column{Title: "VMS", Path: "status.vms"}, age(), idColumn())
	type zoneCreate struct{ meta }
	writes(g, Operation{
		Kind: resource.KindZone, Verb: "create", Summary: "Create a zone", Example: "shoalctl zone create z1",
		Help: "A zone is the largest scope: resources of different zones can't be combined.",
	}, func(tx resource.Tx, p *zoneCreate) (Outcome, error) {
		return create(tx, &resource.Zone{Meta: p.base(tx), State: resource.Enabled})
	})
	updatable[*resource.Zone](g, "z1 --description 'first floor'", "", metaUpdateParts, nil)
	switchable(g, "Its clusters and hosts are switched with it.", func(z *resource.Zone) *resource.State { return &z.State },
		func(tx resource.Tx, id string, to resource.State) error {
			for c := range resource.Referrers[*resource.Cluster](tx, resource.KindZone, id) {
				c = resource.Copy(c)
				c.State = to
				if _, err := plan.Update(tx, c); err != nil {
					return err
				}
				if err := switchHosts(tx, c.ID, to); err != nil {
					return err
				}
			}
			return nil
		})
	deletable(g, resource.KindZone, "")

	readable(g, resource.KindCluster, "zone.name=z1",
		Column{Title: "NAME", Path: "name"}, Column{Title: "ZONE", Path: "names.zone_id"}, Column{Title: "STATE", Path: "state"}, Column{Title: "HOSTS", Path: "status.hosts"},
		Column{Title: "CONNECTED", Path: "status.connected"}, Column{Title: "VMS", Path: "status.vms"}, Column{Title: "ARCH", Path: "arch", Wide: true}, age(), idColumn())
	type clusterCreate struct {
		meta
		Zone string `json:"zone" ref:"zone" required:"true" help:"zone that it is in"`
		Arch string `json:"arch,omitempty" enum:"amd64|arm64" help:"architecture that its hosts must have; any where not given"`
		Over int    `json:"cpu_overcommit,omitempty" help:"how many virtual CPUs each processor may carry, 1 to 1000 (10)"`
		driftChange
	}
	writes(g, Operation{
		Kind: resource.KindCluster, Verb: "create", Summary: "Create a cluster", Example: "shoalctl cluster create c1 --zone z1",
		Help: "A cluster is a set of hosts that share storages and networks.",
	}, func(tx resource.Tx, p *clusterCreate) (Outcome, error) {
		c := &resource.Cluster{Meta: p.base(tx), ZoneID: p.Zone, State: resource.Enabled, Arch: p.Arch, CPUOvercommit: p.Over}
		if err := p.apply(&c.Drift); err != nil {
			return Outcome{}, err
		}
		return create(tx, c)
	})
	type clusterUpdate struct {
		getParams
		metaChange
		Arch *string `json:"arch,omitempty" enum:"amd64|arm64" help:"architecture that its hosts must have; an empty text for any"`
		Over *int    `json:"cpu_overcommit,omitempty" help:"how many virtual CPUs each processor may carry, 1 to 1000"`
		driftChange
	}
	updatable(g, "c1 --name rack-1\nshoalctl cluster update c1 --drift domain=adopt", driftHelp, func(p *clusterUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *clusterUpdate, c *resource.Cluster) error {
			set(&c.Arch, p.Arch)
			set(&c.CPUOvercommit, p.Over)
			return p.driftChange.apply(&c.Drift)
		})
	switchable(g, "Its hosts are switched with it.", func(c *resource.Cluster) *resource.State { return &c.State }, switchHosts)
	deletable(g, resource.KindCluster, "")
}

func switchHosts(tx resource.Tx, cluster string, to resource.State) error {
	for h := range resource.Referrers[*resource.Host](tx, resource.KindCluster, cluster) {
		h = resource.Copy(h)
		h.State = to
		if _, err := plan.Update(tx, h); err != nil {
			return err
		}
	}
	return nil
}

func hosts(g *Registry) {
	readable(g, resource.KindHost, "status.state=Connected",
		Column{Title: "NAME", Path: "name"}, Column{Title: "CLUSTER", Path: "names.cluster_id"}, Column{Title: "STATE", Path: "state"}, Column{Title: "STATUS", Path: "status.state"},
		Column{Title: "VMS", Path: "status.running"}, Column{Title: "CPUS", Path: "status.used_cpus"}, Column{Title: "OF", Path: "status.cpus"},
		Column{Title: "MEM USED", Path: "status.used_memory_mib", As: "mib"}, Column{Title: "MEM", Path: "status.memory_mib", As: "mib"},
		Column{Title: "VIRT", Path: "status.virt", Wide: true}, Column{Title: "HELD", Path: "hold.why", Wide: true}, Column{Title: "GEN", Path: "status.gen", Wide: true}, Column{Title: "BEHIND", Path: "status.behind", Wide: true},
		Column{Title: "VERSION", Path: "status.version", Wide: true}, Column{Title: "CLOCK MS", Path: "status.clock.offset_ms", Wide: true},
		Column{Title: "FAULT", Path: "status.fault.message", Wide: true}, age(), idColumn())
	type hostCreate struct {
		meta
		Cluster   string `json:"cluster" ref:"cluster" required:"true" help:"cluster that it belongs to"`
		PublicKey string `json:"public_key" required:"true" help:"public part of the agent's user nkey (U...); shoalctl makes the key where it is not given"`
	}
	writes(g, Operation{
		Kind: resource.KindHost, Verb: "create", Aliases: []string{"add"}, Summary: "Add a host by hand",
		Help: "Hosts come in by themselves with a token (shoalctl host token create); this is for those that can't. The key of the host's agent is made by shoalctl; only its public part travels. The answer holds the signed credential, which --creds-out " +
			"writes to a file together with the key: bring that file to the host and start the agent with it.",
		Example: "shoalctl host add h1 --cluster c1 --creds-out h1.creds", after: issueJWT,
	}, func(tx resource.Tx, p *hostCreate) (Outcome, error) {
		return create(tx, &resource.Host{Meta: p.base(tx), ClusterID: p.Cluster, State: resource.Enabled, PublicKey: p.PublicKey})
	})
	type hostCredentials struct {
		ID        string `json:"id" arg:"1" required:"true" help:"id or unique name"`
		PublicKey string `json:"public_key" required:"true" help:"public part of the agent's new user nkey (U...); shoalctl makes the key where it is not given"`
	}
	writes(g, Operation{
		Kind: resource.KindHost, Verb: "rekey", Class: Dangerous, Summary: "Give a host a new key",
		Help:    "The old key stops working at once; the host goes on as it is and reports again when its agent is started with the new credentials file.",
		Example: "shoalctl host rekey h1 --creds-out h1.creds",
		after:   issueJWT,
	}, func(tx resource.Tx, p *hostCredentials) (Outcome, error) {
		id, err := lookup(tx, "id", resource.KindHost, p.ID)
		if err != nil {
			return Outcome{}, err
		}
		return did(plan.RekeyHost(tx, id, p.PublicKey))
	})
	type hostUpdate struct {
		getParams
		metaChange
		Shrink *bool `json:"shrink,omitempty" help:"let its next documents remove more running VMs than the guard on the host lets pass"`
		driftChange
	}
	updatable(g, "h1 --description 'rack 4'\nshoalctl host update h1 --drift domain=hold,netdev=default", "What is said here of drift goes before what its cluster says. "+driftHelp, func(p *hostUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *hostUpdate, h *resource.Host) error {
			set(&h.Shrink, p.Shrink)
			return p.driftChange.apply(&h.Drift)
		})
	switchable(g, "VMs that run on it go on.", func(h *resource.Host) *resource.State { return &h.State }, nil)
	deletable(g, resource.KindHost, "Its records go, its data stays where it is. Its credentials stop working at once, which cuts its agent off.", "host remove")
}

// issueJWT signs the credential of the host that the reply is about.
func issueJWT(env *Env, _ resource.Reader, _ any, reply *Reply) error {
	h, ok := reply.main.(*resource.Host)
	if !ok || env.HostJWT == nil || reply.DryRun {
		return nil
	}
	var err error
	reply.JWT, reply.Expires, err = env.HostJWT(h.ID, h.PublicKey)
	return err
}

func storages(g *Registry) {
	readable(g, resource.KindStorage, "type=nfs",
		Column{Title: "NAME", Path: "name"}, Column{Title: "TYPE", Path: "type"}, Column{Title: "STATE", Path: "state"}, Column{Title: "STATUS", Path: "status.state"},
		Column{Title: "TOTAL", Path: "status.total_bytes", As: "size"}, Column{Title: "AVAILABLE", Path: "status.available_bytes", As: "size"},
		Column{Title: "VOLUMES", Path: "status.volumes"}, Column{Title: "CLUSTERS", Path: "names.cluster_ids"},
		Column{Title: "ZONE", Path: "names.zone_id", Wide: true}, Column{Title: "PATH", Path: "path", Wide: true}, Column{Title: "SOURCE", Path: "source", Wide: true},
		Column{Title: "FAULT", Path: "status.fault.message", Wide: true}, age(), idColumn())
	type storageCreate struct {
		meta
		Zone          string   `json:"zone" ref:"zone" required:"true" help:"zone that it is in"`
		Type          string   `json:"type" required:"true" enum:"local|sharedmount|nfs" help:"local: a directory of every host; sharedmount: a mount that is there on every host; nfs: mounted by the agents"`
		Path          string   `json:"path,omitempty" help:"directory on the hosts; with type nfs it is chosen"`
		Source        string   `json:"source,omitempty" help:"server:/export, with type nfs"`
		MountOptions  string   `json:"mount_options,omitempty" help:"options for mount, comma separated, with type nfs"`
		Overprovision *float64 `json:"overprovision,omitempty" help:"how many times the capacity may be promised to volumes, 1 to 1000 (1)"`
		Reserved      *Size    `json:"reserved,omitempty" help:"capacity that is never promised (1GiB)"`
		Clusters      []string `json:"clusters,omitempty" flag:"cluster" ref:"cluster" help:"cluster to attach it to"`
	}
	writes(g, Operation{
		Kind: resource.KindStorage, Verb: "create", Aliases: []string{"add"}, Task: true, Summary: "Add a primary storage",
		Help:    "Where volumes lie. Hosts of the clusters that it is attached to make it ready; one that can't says why in its status.",
		Example: "shoalctl storage create local --zone z1 --type local --path /var/lib/shoal/storage --cluster c1\nshoalctl storage create nfs --zone z1 --type nfs --source 10.0.0.9:/export --cluster c1 --wait",
	}, func(tx resource.Tx, p *storageCreate) (Outcome, error) {
		s := &resource.Storage{
			Meta: p.base(tx), ZoneID: p.Zone, Type: resource.StorageType(p.Type), Path: p.Path, Source: p.Source, MountOptions: p.MountOptions,
			State: resource.Enabled, Overprovision: 1, ReservedBytes: 1 << 30,
		}
		set(&s.Overprovision, p.Overprovision)
		set(&s.ReservedBytes, (*uint64)(p.Reserved))
		out, err := create(tx, s)
		if err != nil {
			return out, err
		}
		id := out.Resources[0].Base().ID
		for _, c := range p.Clusters {
			if out, err = did(plan.AttachStorage(tx, id, c)); err != nil {
				return out, err
			}
		}
		return out, nil
	})
	type storageUpdate struct {
		getParams
		metaChange
		Overprovision *float64 `json:"overprovision,omitempty" help:"how many times the capacity may be promised to volumes, 1 to 1000"`
		Reserved      *Size    `json:"reserved,omitempty" help:"capacity that is never promised"`
	}
	updatable(g, "local --overprovision 2", "", func(p *storageUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *storageUpdate, s *resource.Storage) error {
			set(&s.Overprovision, p.Overprovision)
			set(&s.ReservedBytes, (*uint64)(p.Reserved))
			return nil
		})
	switchable(g, "", func(s *resource.Storage) *resource.State { return &s.State }, nil)
	attachable(g, resource.KindStorage, "Its hosts mount it or look for it. Both must be of one zone.",
		func(tx resource.Tx, id, cluster string) (Outcome, error) {
			return did(plan.AttachStorage(tx, id, cluster))
		},
		func(tx resource.Tx, id, cluster string) (Outcome, error) {
			return did(plan.DetachStorage(tx, id, cluster))
		})
	deletable(g, resource.KindStorage, "Its records go, its data stays where it is.")
}

type attachParams struct {
	ID      string `json:"id" arg:"1" required:"true" help:"id or unique name"`
	Cluster string `json:"cluster" ref:"cluster" required:"true" help:"cluster"`
}

// attachable declares attach and detach of a kind to clusters; attach may be nil where it needs more parameters.
func attachable(g *Registry, kind resource.Kind, help string, attach, detach func(tx resource.Tx, id, cluster string) (Outcome, error)) {
	run := func(f func(tx resource.Tx, id, cluster string) (Outcome, error)) func(tx resource.Tx, p *attachParams) (Outcome, error) {
		return func(tx resource.Tx, p *attachParams) (Outcome, error) {
			id, err := lookup(tx, "id", kind, p.ID)
			if err != nil {
				return Outcome{}, err
			}
			return f(tx, id, p.Cluster)
		}
	}
	if attach != nil {
		writes(g, Operation{
			Kind: kind, Verb: "attach", Task: true, Summary: "Attach " + article(kind) + " to a cluster", Help: help,
			Example: "shoalctl " + string(kind) + " attach NAME --cluster c1 --wait",
		}, run(attach))
	}
	writes(g, Operation{
		Kind: kind, Verb: "detach", Class: Dangerous, Task: true, Summary: "Detach " + article(kind) + " from a cluster",
		Help: "Refused while VMs of the cluster use it.", Example: "shoalctl " + string(kind) + " detach NAME --cluster c1",
	}, run(detach))
}
