package agent

import (
	"context"
	"net/http"
	"path/filepath"

	"github.com/rs/zerolog"

	"shoal/agent/dhcp"
	"shoal/agent/domain"
	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/agent/install"
	"shoal/agent/netdev"
	"shoal/agent/pool"
	"shoal/agent/probe"
	"shoal/agent/secgroup"
	"shoal/agent/volume"
	"shoal/desired"
)

// Machine is everything on a host that an agent drives or looks at. Nothing else in an agent touches the host, but for the
// files in the agent's own directory.
type Machine struct {
	// Boot is the id of this start of the machine: another one after every start.
	Boot string
	// Run runs iptables, ipset and qemu-img.
	Run     host.Runner
	Links   netdev.Links
	DHCP    dhcp.Machine
	Filter  secgroup.Kernel
	Mounts  pool.Machine
	Files   volume.Files
	Libvirt domain.Libvirt
	Ports   domain.Machine
	Sensor  Sensor
	// Images fetches images.
	Images *http.Client
}

// Sensor finds out what the host is. See probe.Probe.
type Sensor interface {
	// Virt is the domain type that works here, "kvm" or "qemu"; it may take a while to find out.
	Virt(ctx context.Context) (string, error)
	// Run reports the inventory now and whenever it changes, until ctx ends.
	Run(ctx context.Context, report func(desired.Inventory)) error
}

// real is the machine that the agent runs on; libvirt is to be closed.
func (a *agent) real(cfg Config, who *install.Identity) (m Machine, libvirt *domain.Socket, err error) {
	boot, err := host.Boot()
	if err != nil {
		return Machine{}, nil, err
	}
	libvirt = domain.NewSocket(cfg.Libvirt)
	m = hands(libvirt)
	sensor, err := probe.New(probe.Config{Data: cfg.Data, Run: m.Run, Versions: libvirt.Versions, Log: a.log})
	if err != nil {
		return Machine{}, nil, err
	}
	m.Boot, m.Sensor, m.Images = boot, sensor, install.HTTPClient(who.Roots)
	return m, libvirt, nil
}

// hands are what changes things on the machine that this runs on.
func hands(libvirt domain.Libvirt) Machine {
	run := host.Machine{}
	return Machine{
		Run: run, Links: netdev.Kernel{}, DHCP: dhcp.Linux{Run: run}, Filter: secgroup.Machine{Run: run}, Mounts: pool.Host{Run: run},
		Files: volume.Disk{}, Libvirt: libvirt, Ports: domain.Host{},
	}
}

// addKinds gives the engine everything that it can drive.
func (a *agent) addKinds(cfg Config, hostID string, m Machine) error {
	patience := &host.Patience{}
	if err := addBuilt(a.engine, cfg, built{machine: m, virt: m.Sensor.Virt, acts: a.book, patience: patience, log: a.log}); err != nil {
		return err
	}
	files := volume.Config{Data: cfg.Data, Host: hostID, Run: m.Run, Files: m.Files, Patience: patience, Log: a.log}
	volumes, err := volume.New(files)
	if err != nil {
		return err
	}
	images, err := volume.NewImages(files, a.link, m.Images)
	if err != nil {
		return err
	}
	engine.Add(a.engine, engine.StageShared, desired.KindImage, images)
	engine.Add(a.engine, engine.StageItem, desired.KindVolume, volumes)
	return nil
}

// built is what the kinds share that build something on the host.
type built struct {
	machine  Machine
	virt     func(context.Context) (string, error)
	acts     domain.Acts
	patience *host.Patience
	log      zerolog.Logger
}

// addBuilt gives an engine the kinds that hold no data: what they build can be taken off and built again.
func addBuilt(e *engine.Engine, cfg Config, b built) error {
	m := b.machine
	pools, err := pool.New(pool.Config{Data: cfg.Data, Machine: m.Mounts, Patience: b.patience, Log: b.log})
	if err != nil {
		return err
	}
	filter, err := secgroup.New(m.Run, m.Filter, filepath.Join(cfg.Data, "secgroup"), b.log)
	if err != nil {
		return err
	}
	domains, err := domain.New(domain.Config{Libvirt: m.Libvirt, Virt: b.virt, Acts: b.acts, Machine: m.Ports, Log: b.log})
	if err != nil {
		return err
	}
	servers, err := dhcp.New(m.Run, m.DHCP, filepath.Join(cfg.Data, "dhcp"), b.log)
	if err != nil {
		return err
	}
	engine.Add(e, engine.StageBase, desired.KindNetDev, netdev.New(m.Links, b.log))
	engine.Add(e, engine.StageBase, desired.KindPool, pools)
	engine.Add(e, engine.StageShared, desired.KindAddrSet, filter.Sets())
	engine.Add(e, engine.StageItem, desired.KindDHCP, servers)
	engine.Add(e, engine.StageItem, desired.KindSecGroup, filter.Chains())
	engine.Add(e, engine.StageDomain, desired.KindDomain, domains)
	return nil
}
