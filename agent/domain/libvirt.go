package domain

import (
	"context"
	"errors"
)

// Libvirt is what the kind needs of libvirt. Domains are named by their UUIDs. Every call ends with its context, also when
// libvirt does not answer.
type Libvirt interface {
	// List is every domain, persistent or not, of ours or not.
	List(ctx context.Context) ([]Info, error)
	// Lookup is one domain; ErrNotFound when there is none.
	Lookup(ctx context.Context, id string) (Info, error)
	// XML is a domain's definition: that of the running machine, or that of the next start.
	XML(ctx context.Context, id string, live bool) (string, error)

	// Define sets the definition of the next start.
	Define(ctx context.Context, xml string) error
	// SetMark replaces the element of our namespace in the metadata of the next start's definition.
	SetMark(ctx context.Context, id, element string) error
	Undefine(ctx context.Context, id string) error

	// Start starts a domain from its definition. ErrState when it runs.
	Start(ctx context.Context, id string, paused bool) error
	// Shutdown asks the guest by ACPI and does not wait.
	Shutdown(ctx context.Context, id string) error
	// Destroy ends a domain at once. ErrState when it does not run.
	Destroy(ctx context.Context, id string) error
	Suspend(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Reset(ctx context.Context, id string) error

	// Attach plugs a device into the running machine. Detach asks the guest to let go of one; the device is gone only when
	// the live XML no longer has it. Both leave the definition alone.
	Attach(ctx context.Context, id, device string) error
	Detach(ctx context.Context, id, device string) error

	// Events calls ready once it listens and then changed for every domain that something happened to, until ctx ends or
	// the connection is lost, which is an error.
	Events(ctx context.Context, ready func(), changed func(Event)) error
}

// Event says that something happened to a domain.
type Event struct {
	ID string
	// IOError is why a disk's error stopped the machine, with such an event: "enospc" or something else.
	IOError string
}

// Info is what libvirt's lists say of a domain.
type Info struct {
	ID         string
	Name       string
	State      State
	Reason     int
	Persistent bool
}

// State is libvirt's virDomainState.
type State int

// The states of libvirt.
const (
	NoState     State = 0
	Running     State = 1
	Blocked     State = 2
	Paused      State = 3
	ShuttingOff State = 4
	Shutoff     State = 5
	Crashed     State = 6
	PMSuspended State = 7
)

// Reasons of libvirt that decide something here: virDomainShutoffReason and virDomainPausedReason.
const (
	ShutoffUnknown   = 0
	ShutoffShutdown  = 1
	ShutoffDestroyed = 2
	ShutoffCrashed   = 3
	ShutoffMigrated  = 4
	ShutoffFailed    = 6

	PausedUnknown    = 0
	PausedUser       = 1
	PausedMigration  = 2
	PausedSave       = 3
	PausedDump       = 4
	PausedIOError    = 5
	PausedSnapshot   = 9
	PausedStartingUp = 11
	PausedPostcopy   = 12
)

// Active reports whether there is a machine, running or not.
func (i Info) Active() bool { return i.State != NoState && i.State != Shutoff && i.State != Crashed }

// What somebody branches on. Backends wrap them around libvirt's text.
var (
	// ErrNotFound is a domain that libvirt does not have.
	ErrNotFound = errors.New("no such domain")
	// ErrState is an operation that the domain's state forbids.
	ErrState = errors.New("the domain's state forbids it")
	// ErrExists is a definition whose name or UUID another domain has.
	ErrExists = errors.New("the name or UUID is taken")
	// ErrUnsupported is a change that a running machine can't take.
	ErrUnsupported = errors.New("not possible while it runs")
	// ErrUnreachable is libvirt not there or not answering.
	ErrUnreachable = errors.New("libvirt can't be reached")
	// ErrBusy is libvirt or QEMU not answering in time; it may well work later.
	ErrBusy = errors.New("libvirt is busy")
)
