package plan

import (
	"errors"
	"net/netip"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

var errSoon = errors.New("not written yet")

func Create(tx resource.Tx, r resource.Resource) (resource.Resource, error) { return nil, errSoon }
func Update(tx resource.Tx, r resource.Resource) (resource.Resource, error) { return nil, errSoon }
func CreateVM(tx resource.Tx, spec VMSpec) (*resource.VM, error)            { return nil, errSoon }
func StartVM(tx resource.Tx, id, hostID string) (*resource.VM, error)       { return nil, errSoon }
func StopVM(tx resource.Tx, id string, opt StopOptions) (*resource.VM, error) {
	return nil, errSoon
}
func RebootVM(tx resource.Tx, id string) (*resource.VM, error)                   { return nil, errSoon }
func ResetVM(tx resource.Tx, id string) (*resource.VM, error)                    { return nil, errSoon }
func PauseVM(tx resource.Tx, id string) (*resource.VM, error)                    { return nil, errSoon }
func ResumeVM(tx resource.Tx, id string) (*resource.VM, error)                   { return nil, errSoon }
func DestroyVM(tx resource.Tx, id string) (*resource.VM, error)                  { return nil, errSoon }
func RecoverVM(tx resource.Tx, id string) (*resource.VM, error)                  { return nil, errSoon }
func ExpungeVM(tx resource.Tx, id string) (*resource.VM, error)                  { return nil, errSoon }
func AttachNIC(tx resource.Tx, vmID string, spec NICSpec) (*resource.NIC, error) { return nil, errSoon }
func DetachNIC(tx resource.Tx, nicID string) error                               { return errSoon }
func SetNICGroups(tx resource.Tx, nicID string, add, remove []string) (*resource.NIC, error) {
	return nil, errSoon
}
func CreateVolume(tx resource.Tx, spec VolumeSpec) (*resource.Volume, error) { return nil, errSoon }
func AttachVolume(tx resource.Tx, id, vmID string) (*resource.Volume, error) { return nil, errSoon }
func DetachVolume(tx resource.Tx, id string) (*resource.Volume, error)       { return nil, errSoon }
func ResizeVolume(tx resource.Tx, id string, bytes uint64) (*resource.Volume, error) {
	return nil, errSoon
}
func DestroyVolume(tx resource.Tx, id string) (*resource.Volume, error) { return nil, errSoon }
func RecoverVolume(tx resource.Tx, id string) (*resource.Volume, error) { return nil, errSoon }
func ExpungeVolume(tx resource.Tx, id string) (*resource.Volume, error) { return nil, errSoon }
func CreateSecGroup(tx resource.Tx, g *resource.SecGroup, closed bool) (*resource.SecGroup, error) {
	return nil, errSoon
}
func CreateL2(tx resource.Tx, l *resource.L2) (*resource.L2, error)             { return nil, errSoon }
func AddIPRange(tx resource.Tx, r *resource.IPRange) (*resource.IPRange, error) { return nil, errSoon }
func AttachStorage(tx resource.Tx, id, clusterID string) (*resource.Storage, error) {
	return nil, errSoon
}
func DetachStorage(tx resource.Tx, id, clusterID string) (*resource.Storage, error) {
	return nil, errSoon
}
func AttachL2(tx resource.Tx, id, clusterID string) (*resource.L2, error) { return nil, errSoon }
func DetachL2(tx resource.Tx, id, clusterID string) (*resource.L2, error) { return nil, errSoon }
func AttachVXLANPool(tx resource.Tx, id, clusterID string, cidr netip.Prefix) (*resource.VXLANPool, error) {
	return nil, errSoon
}
func DetachVXLANPool(tx resource.Tx, id, clusterID string) (*resource.VXLANPool, error) {
	return nil, errSoon
}
func Delete(tx resource.Tx, kind resource.Kind, id string, opt DeleteOptions) ([]Deleted, error) {
	return nil, errSoon
}

type Renderer struct{ r resource.Reader }

func NewRenderer(r resource.Reader) *Renderer { return &Renderer{r} }

func (d *Renderer) Render(host string) ([]desired.Item, HeadBits, error) {
	return nil, HeadBits{}, errSoon
}

func Render(r resource.Reader, host string) ([]desired.Item, HeadBits, error) {
	return NewRenderer(r).Render(host)
}

func Affected(old, changed resource.Resource, before, after resource.Reader) (hosts map[string]struct{}, all bool) {
	return nil, true
}

func Due(r resource.Reader, now time.Time) bool { return false }
func Tick(tx resource.Tx) (bool, error)         { return false, errSoon }

func NewTask(tx resource.Tx, kind resource.Kind, id string) (*resource.Task, error) {
	return nil, errSoon
}
func TaskOf(r resource.Reader, requestID string) *resource.Task   { return nil }
func Converge(r resource.Reader, task *resource.Task) Convergence { return Convergence{} }

type HostDiff struct{}

func DocumentDiff(before, after resource.Reader) ([]HostDiff, error) { return nil, errSoon }
