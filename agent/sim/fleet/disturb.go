package fleet

import (
	"context"
	"io"
	"io/fs"
	"net/netip"

	"shoal/agent"
	"shoal/agent/dhcp"
	"shoal/agent/domain"
	"shoal/agent/host"
	"shoal/agent/netdev"
	"shoal/agent/pool"
	"shoal/agent/secgroup"
	"shoal/agent/volume"
)

// Disturb puts faults between an agent and a machine.
func Disturb(m agent.Machine, f *Faults) agent.Machine {
	m.Run = faultyRunner{m.Run, f}
	m.Links = faultyLinks{m.Links, f}
	m.DHCP = faultyDHCP{m.DHCP, f}
	m.Filter = faultyFilter{m.Filter, f}
	m.Mounts = faultyMounts{m.Mounts, f}
	m.Files = faultyFiles{m.Files, f}
	m.Libvirt = faultyLibvirt{m.Libvirt, f}
	m.Ports = faultyPorts{m.Ports, f}
	return m
}

// faultyLinks is a machine's devices with faults. What only watches is not disturbed.
type faultyLinks struct {
	netdev.Links
	faults *Faults
}

func (w faultyLinks) List(ctx context.Context) ([]netdev.Link, error) {
	return disturbed(ctx, w.faults, "links.list", func() ([]netdev.Link, error) { return w.Links.List(ctx) })
}

func (w faultyLinks) Add(ctx context.Context, l netdev.Link) error {
	return w.faults.disturb(ctx, "links.add", func() error { return w.Links.Add(ctx, l) })
}

func (w faultyLinks) Delete(ctx context.Context, name string) error {
	return w.faults.disturb(ctx, "links.delete", func() error { return w.Links.Delete(ctx, name) })
}

func (w faultyLinks) SetMaster(ctx context.Context, name string, master string) error {
	return w.faults.disturb(ctx, "links.master", func() error { return w.Links.SetMaster(ctx, name, master) })
}

func (w faultyLinks) SetUp(ctx context.Context, name string) error {
	return w.faults.disturb(ctx, "links.up", func() error { return w.Links.SetUp(ctx, name) })
}

func (w faultyLinks) SetMTU(ctx context.Context, name string, mtu int) error {
	return w.faults.disturb(ctx, "links.mtu", func() error { return w.Links.SetMTU(ctx, name, mtu) })
}

func (w faultyLinks) SetAlias(ctx context.Context, name string, alias string) error {
	return w.faults.disturb(ctx, "links.alias", func() error { return w.Links.SetAlias(ctx, name, alias) })
}

func (w faultyLinks) TuneBridge(ctx context.Context, name string) error {
	return w.faults.disturb(ctx, "links.tune", func() error { return w.Links.TuneBridge(ctx, name) })
}

func (w faultyLinks) AddRemote(ctx context.Context, name string, remote netip.Addr) error {
	return w.faults.disturb(ctx, "links.remote", func() error { return w.Links.AddRemote(ctx, name, remote) })
}

func (w faultyLinks) DeleteRemote(ctx context.Context, name string, remote netip.Addr) error {
	return w.faults.disturb(ctx, "links.remote", func() error { return w.Links.DeleteRemote(ctx, name, remote) })
}

// faultyDHCP is a machine's DHCP servers with faults. What only watches is not disturbed.
type faultyDHCP struct {
	dhcp.Machine
	faults *Faults
}

func (w faultyDHCP) Links(ctx context.Context) ([]dhcp.Link, error) {
	return disturbed(ctx, w.faults, "dhcp.links", func() ([]dhcp.Link, error) { return w.Machine.Links(ctx) })
}

func (w faultyDHCP) HasNamespace(ctx context.Context, namespace string) (bool, error) {
	return disturbed(ctx, w.faults, "dhcp.namespace", func() (bool, error) { return w.Machine.HasNamespace(ctx, namespace) })
}

func (w faultyDHCP) Plumb(ctx context.Context, p dhcp.Place, alias string, mtu int) error {
	return w.faults.disturb(ctx, "dhcp.plumb", func() error { return w.Machine.Plumb(ctx, p, alias, mtu) })
}

func (w faultyDHCP) Unplumb(ctx context.Context, p dhcp.Place) error {
	return w.faults.disturb(ctx, "dhcp.unplumb", func() error { return w.Machine.Unplumb(ctx, p) })
}

func (w faultyDHCP) Start(ctx context.Context, dir string, namespace string, conf string) error {
	return w.faults.disturb(ctx, "dhcp.start", func() error { return w.Machine.Start(ctx, dir, namespace, conf) })
}

func (w faultyDHCP) Reload(ctx context.Context, pid int) error {
	return w.faults.disturb(ctx, "dhcp.reload", func() error { return w.Machine.Reload(ctx, pid) })
}

func (w faultyDHCP) Stop(ctx context.Context, dir string) error {
	return w.faults.disturb(ctx, "dhcp.stop", func() error { return w.Machine.Stop(ctx, dir) })
}

// faultyFilter is a machine's packet filter with faults. What only watches is not disturbed.
type faultyFilter struct {
	secgroup.Kernel
	faults *Faults
}

func (w faultyFilter) Generation() (uint32, error) {
	return disturbed(context.Background(), w.faults, "filter.generation", func() (uint32, error) { return w.Kernel.Generation() })
}

func (w faultyFilter) FilterBridges() error {
	return w.faults.disturb(context.Background(), "filter.bridges", func() error { return w.Kernel.FilterBridges() })
}

// faultyMounts is a machine's mounts with faults. What only watches is not disturbed.
type faultyMounts struct {
	pool.Machine
	faults *Faults
}

func (w faultyMounts) Mounts() ([]pool.Mount, error) {
	return disturbed(context.Background(), w.faults, "mounts.list", func() ([]pool.Mount, error) { return w.Machine.Mounts() })
}

func (w faultyMounts) Mount(ctx context.Context, fstype string, source string, path string, options string) error {
	return w.faults.disturb(ctx, "mounts.mount", func() error { return w.Machine.Mount(ctx, fstype, source, path, options) })
}

func (w faultyMounts) Unmount(ctx context.Context, path string) error {
	return w.faults.disturb(ctx, "mounts.unmount", func() error { return w.Machine.Unmount(ctx, path) })
}

func (w faultyMounts) MkdirAll(path string) error {
	return w.faults.disturb(context.Background(), "mounts.mkdir", func() error { return w.Machine.MkdirAll(path) })
}

func (w faultyMounts) ReadMarker(path string) (string, error) {
	return disturbed(context.Background(), w.faults, "mounts.marker", func() (string, error) { return w.Machine.ReadMarker(path) })
}

func (w faultyMounts) WriteMarker(path string, content string) error {
	return w.faults.disturb(context.Background(), "mounts.mark", func() error { return w.Machine.WriteMarker(path, content) })
}

func (w faultyMounts) Space(path string) (pool.Space, error) {
	return disturbed(context.Background(), w.faults, "mounts.space", func() (pool.Space, error) { return w.Machine.Space(path) })
}

// faultyFiles is a machine's files with faults. What only watches is not disturbed.
type faultyFiles struct {
	volume.Files
	faults *Faults
}

func (w faultyFiles) Stat(path string) (volume.FileInfo, error) {
	return disturbed(context.Background(), w.faults, "files.stat", func() (volume.FileInfo, error) { return w.Files.Stat(path) })
}

func (w faultyFiles) Head(path string, n int) ([]byte, error) {
	return disturbed(context.Background(), w.faults, "files.head", func() ([]byte, error) { return w.Files.Head(path, n) })
}

func (w faultyFiles) Open(path string) (io.ReadCloser, error) {
	return disturbed(context.Background(), w.faults, "files.open", func() (io.ReadCloser, error) { return w.Files.Open(path) })
}

func (w faultyFiles) Append(path string) (volume.File, error) {
	return disturbed(context.Background(), w.faults, "files.append", func() (volume.File, error) { return w.Files.Append(path) })
}

func (w faultyFiles) Publish(from string, to string, perm fs.FileMode) error {
	return w.faults.disturb(context.Background(), "files.publish", func() error { return w.Files.Publish(from, to, perm) })
}

func (w faultyFiles) Remove(path string) error {
	return w.faults.disturb(context.Background(), "files.remove", func() error { return w.Files.Remove(path) })
}

func (w faultyFiles) MkdirAll(dir string) error {
	return w.faults.disturb(context.Background(), "files.mkdir", func() error { return w.Files.MkdirAll(dir) })
}

func (w faultyFiles) List(dir string) ([]string, error) {
	return disturbed(context.Background(), w.faults, "files.list", func() ([]string, error) { return w.Files.List(dir) })
}

func (w faultyFiles) Free(dir string) (uint64, error) {
	return disturbed(context.Background(), w.faults, "files.free", func() (uint64, error) { return w.Files.Free(dir) })
}

func (w faultyFiles) InUse(path string) (bool, error) {
	return disturbed(context.Background(), w.faults, "files.used", func() (bool, error) { return w.Files.InUse(path) })
}

// faultyLibvirt is a machine's libvirt with faults. What only watches is not disturbed.
type faultyLibvirt struct {
	domain.Libvirt
	faults *Faults
}

func (w faultyLibvirt) List(ctx context.Context) ([]domain.Info, error) {
	return disturbed(ctx, w.faults, "libvirt.list", func() ([]domain.Info, error) { return w.Libvirt.List(ctx) })
}

func (w faultyLibvirt) Lookup(ctx context.Context, id string) (domain.Info, error) {
	return disturbed(ctx, w.faults, "libvirt.lookup", func() (domain.Info, error) { return w.Libvirt.Lookup(ctx, id) })
}

func (w faultyLibvirt) XML(ctx context.Context, id string, live bool) (string, error) {
	return disturbed(ctx, w.faults, "libvirt.xml", func() (string, error) { return w.Libvirt.XML(ctx, id, live) })
}

func (w faultyLibvirt) Define(ctx context.Context, xml string) error {
	return w.faults.disturb(ctx, "libvirt.define", func() error { return w.Libvirt.Define(ctx, xml) })
}

func (w faultyLibvirt) SetMark(ctx context.Context, id string, element string) error {
	return w.faults.disturb(ctx, "libvirt.mark", func() error { return w.Libvirt.SetMark(ctx, id, element) })
}

func (w faultyLibvirt) Undefine(ctx context.Context, id string) error {
	return w.faults.disturb(ctx, "libvirt.undefine", func() error { return w.Libvirt.Undefine(ctx, id) })
}

func (w faultyLibvirt) Start(ctx context.Context, id string, paused bool) error {
	return w.faults.disturb(ctx, "libvirt.start", func() error { return w.Libvirt.Start(ctx, id, paused) })
}

func (w faultyLibvirt) Shutdown(ctx context.Context, id string) error {
	return w.faults.disturb(ctx, "libvirt.shutdown", func() error { return w.Libvirt.Shutdown(ctx, id) })
}

func (w faultyLibvirt) Destroy(ctx context.Context, id string) error {
	return w.faults.disturb(ctx, "libvirt.destroy", func() error { return w.Libvirt.Destroy(ctx, id) })
}

func (w faultyLibvirt) Suspend(ctx context.Context, id string) error {
	return w.faults.disturb(ctx, "libvirt.suspend", func() error { return w.Libvirt.Suspend(ctx, id) })
}

func (w faultyLibvirt) Resume(ctx context.Context, id string) error {
	return w.faults.disturb(ctx, "libvirt.resume", func() error { return w.Libvirt.Resume(ctx, id) })
}

func (w faultyLibvirt) Reset(ctx context.Context, id string) error {
	return w.faults.disturb(ctx, "libvirt.reset", func() error { return w.Libvirt.Reset(ctx, id) })
}

func (w faultyLibvirt) Attach(ctx context.Context, id string, device string) error {
	return w.faults.disturb(ctx, "libvirt.attach", func() error { return w.Libvirt.Attach(ctx, id, device) })
}

func (w faultyLibvirt) Detach(ctx context.Context, id string, device string) error {
	return w.faults.disturb(ctx, "libvirt.detach", func() error { return w.Libvirt.Detach(ctx, id, device) })
}

// faultyPorts is a machine's ports with faults. What only watches is not disturbed.
type faultyPorts struct {
	domain.Machine
	faults *Faults
}

func (w faultyPorts) SetBridge(dev string, bridge string) error {
	return w.faults.disturb(context.Background(), "ports.set", func() error { return w.Machine.SetBridge(dev, bridge) })
}

func (w faultyPorts) MkdirAll(dir string) error {
	return w.faults.disturb(context.Background(), "ports.mkdir", func() error { return w.Machine.MkdirAll(dir) })
}

func (w faultyPorts) RemoveLog(path string) error {
	return w.faults.disturb(context.Background(), "ports.log", func() error { return w.Machine.RemoveLog(path) })
}

// faultyRunner is a machine's programs with faults.
type faultyRunner struct {
	host.Runner
	faults *Faults
}

func (w faultyRunner) Run(ctx context.Context, c host.Command) ([]byte, error) {
	return disturbed(ctx, w.faults, "run."+c.Name, func() ([]byte, error) {
		return w.Runner.Run(ctx, c)
	})
}
