package desired

import (
	"encoding/json"
	"fmt"
	"time"
)

// Phase is where an item stands.
type Phase string

// The phases.
const (
	PhaseWaiting  Phase = "Waiting"  // something it needs is not Ready yet; Fault says what
	PhaseWorking  Phase = "Working"  // being brought about right now
	PhaseReady    Phase = "Ready"    // so it is
	PhaseRetrying Phase = "Retrying" // the last try failed; Fault says why; it will be tried again
	PhaseRefused  Phase = "Refused"  // it can't be; Fault says why; tried again only when the item changes
	PhaseDrifted  Phase = "Drifted"  // changed by others and held as it is by policy
	PhaseRemoving Phase = "Removing" // no longer wanted and not gone yet
)

// Status is what an agent reports of one item, under observed/<host>.<kind>.<id>. The key goes when the item has
// left both the document and the host.
type Status struct {
	// Rev is the item's revision that the agent acted on.
	Rev   uint64 `json:"rev"`
	Phase Phase  `json:"phase"`
	Fault *Fault `json:"fault,omitempty"`
	// Facts is the kind's facts type, measured at the last look.
	Facts json.RawMessage `json:"facts,omitempty"`
	// Progress is how far a long step is, in percent; 0 where unknown.
	Progress int `json:"progress,omitempty"`
	// Since is when the item entered its phase.
	Since time.Time `json:"since"`
	// Began is when the agent took up what it has brought about, or still tries to: new content, or a foreign change. Zero for
	// what it found so when it started. Older agents don't say it.
	Began time.Time `json:"began,omitzero"`
	// Cause is the request that last changed the item.
	Cause string `json:"cause,omitempty"`
	// Drifts counts foreign changes that were found and healed since the agent started; LastDrift describes the newest.
	Drifts    int    `json:"drifts,omitempty"`
	LastDrift *Drift `json:"last_drift,omitempty"`
	// Found is, in phase Drifted and with policy adopt, the spec that what was found fits, for the controller to take over. Where
	// no spec can express it, the item is held and Fault says so.
	Found json.RawMessage `json:"found,omitempty"`
}

// Drift is a foreign change: found, told, healed.
type Drift struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
}

// Code is the machine-readable name of a fault.
type Code string

// The codes. Every code has a remedy: see Remedy.
const (
	CodeInvalid            Code = "Invalid"            // the item's content is not acceptable
	CodeTooNew             Code = "TooNew"             // the agent does not know a field or kind of the item
	CodeWaiting            Code = "Waiting"            // an item that this one needs is not Ready
	CodeInternal           Code = "Internal"           // a step failed in a way that nobody foresaw
	CodeTimeout            Code = "Timeout"            // a step took longer than it may
	CodeMissing            Code = "Missing"            // a device, path or program that must be there is not
	CodeConflict           Code = "Conflict"           // something of that name is there and not ours
	CodeLibvirt            Code = "Libvirt"            // libvirt refused or can't be reached
	CodeNoSpace            Code = "NoSpace"            // the storage is full
	CodeStorageUnreachable Code = "StorageUnreachable" // the storage does not answer
	CodeReadOnly           Code = "ReadOnly"           // the storage can't be written
	CodeChecksum           Code = "Checksum"           // the content is not what it should be
	CodeDownload           Code = "Download"           // the content can't be fetched
	CodeInUse              Code = "InUse"              // something still uses it
	CodeHeld               Code = "Held"               // a guard or policy forbids the change
	CodeRolledBack         Code = "RolledBack"         // it was tried, was not well, and was taken back
	CodeUnknownOutcome     Code = "UnknownOutcome"     // the agent died in the middle of a verb that must not be repeated
	CodeClock              Code = "Clock"              // the host's clock is wrong
)

// Remedy is what an operator does about a fault with this code, where the fault itself does not say.
func (c Code) Remedy() string {
	switch c {
	case CodeInvalid:
		return "correct the resource that the message names"
	case CodeTooNew:
		return "upgrade the agent of this host"
	case CodeWaiting:
		return "look at the item that it waits for"
	case CodeInternal:
		return "read the agent's log of this moment on the host"
	case CodeTimeout:
		return "look at the load and the storage of the host; it is tried again"
	case CodeMissing:
		return "provide what the message names on the host"
	case CodeConflict:
		return "rename or remove the foreign thing that the message names"
	case CodeLibvirt:
		return "read libvirt's text; check that libvirtd runs on the host"
	case CodeNoSpace:
		return "free space on the storage or enlarge it"
	case CodeStorageUnreachable:
		return "check the storage server and the network to it"
	case CodeReadOnly:
		return "check the file system of the storage and remount it writable"
	case CodeChecksum:
		return "check the checksum that was given, and add the image again"
	case CodeDownload:
		return "check that the host reaches the address in the message"
	case CodeInUse:
		return "stop or detach what uses it"
	case CodeHeld:
		return "confirm the change or change the policy"
	case CodeRolledBack:
		return "read what it said; try again by resuming the rollout, or roll out another release"
	case CodeUnknownOutcome:
		return "look at the VM and repeat the verb if it is still wanted"
	case CodeClock:
		return "see chronyc sources on the host, which must reach a time server, such as the controller, by UDP port 123; then: chronyc makestep"
	default:
		return "read the message"
	}
}

// Codes lists every code.
func Codes() []Code {
	return []Code{
		CodeInvalid, CodeTooNew, CodeWaiting, CodeInternal, CodeTimeout, CodeMissing, CodeConflict, CodeLibvirt, CodeNoSpace,
		CodeStorageUnreachable, CodeReadOnly, CodeChecksum, CodeDownload, CodeInUse, CodeHeld, CodeRolledBack, CodeUnknownOutcome,
		CodeClock,
	}
}

// Fault is an error that a user may see: what is wrong, and what to do.
type Fault struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
	// Ref is the item that is waited for, with code Waiting.
	Ref *Ref `json:"ref,omitempty"`
}

// Error makes a Fault an error. The remedy is shown by who shows the fault.
func (f *Fault) Error() string { return fmt.Sprintf("%s: %s", f.Code, f.Message) }

// Encode is the status' canonical JSON.
func (s Status) Encode() ([]byte, error) { return Canonical(s) }

// DecodeStatus reads a status. Unknown fields are ignored: an older controller must understand a newer agent.
func DecodeStatus(b []byte) (Status, error) {
	var s Status
	if err := json.Unmarshal(b, &s); err != nil {
		return Status{}, fmt.Errorf("decode status: %w", err)
	}
	return s, nil
}

// DecodeFacts reads the facts of a status; zero facts if there are none.
func DecodeFacts[T any](s Status) (T, error) {
	var f T
	if len(s.Facts) == 0 {
		return f, nil
	}
	if err := json.Unmarshal(s.Facts, &f); err != nil {
		return f, fmt.Errorf("decode facts: %w", err)
	}
	return f, nil
}

// HostFacts are the facts of the status with kind "host" and id "self": the agent's own.
type HostFacts struct {
	// Gen is the generation that the agent has accepted into its ledger; 0 before the first.
	Gen uint64 `json:"gen"`
	// Ahead is set when the agent's ledger is newer than the bucket: the controller lost data.
	Ahead bool `json:"ahead,omitempty"`
	// Version is the agent's.
	Version string `json:"version"`
	// TooNew says why the newest document is not in force, where the agent does not speak its schema.
	TooNew string `json:"too_new,omitempty"`
	// Started is when the agent's process started.
	Started time.Time `json:"started"`
	// Clock is how its clock stands against the controllers', nil while unknown. It is told anew when it has changed noticeably.
	Clock *Clock `json:"clock,omitempty"`
	// Inventory is what the machine is.
	Inventory Inventory `json:"inventory"`
}

// HostStatusID is the id under which an agent reports itself: observed/<host>.host.self.
const HostStatusID = "self"

// Inventory is what a host is. It changes seldom; loads and counters are metrics, not inventory.
type Inventory struct {
	Hostname string `json:"hostname"`
	Arch     string `json:"arch"` // GOARCH style: amd64, arm64
	Kernel   string `json:"kernel,omitempty"`
	CPUModel string `json:"cpu_model,omitempty"`
	// CPUs is the number of logical processors.
	CPUs int `json:"cpus"`
	// MemoryMiB is the machine's memory.
	MemoryMiB uint64 `json:"memory_mib"`
	// Virt is the domain type that works here, found by trying: "kvm" or "qemu"; empty until known.
	Virt string `json:"virt,omitempty"`
	// VirtNote says why kvm is not used although the device is there.
	VirtNote string `json:"virt_note,omitempty"`
	Libvirt  string `json:"libvirt,omitempty"` // version, "9.0.0"
	QEMU     string `json:"qemu,omitempty"`
	// Addresses are the host's own addresses with their prefixes, "10.0.0.5/24", by device, without loopback and without
	// devices that Shoal made.
	Addresses map[string][]string `json:"addresses,omitempty"`
	// Devices are the network devices that a layer 2 network could use.
	Devices []string `json:"devices,omitempty"`
}
