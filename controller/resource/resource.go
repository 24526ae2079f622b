// Package resource holds what users see: one type per kind of resource with its fields, its own validation, its relations
// and its status. Everything here is pure: no clock, no randomness, no I/O.
//
// # What it guarantees
//
// A resource that passed Validate has no field that contradicts another of its own; what depends on other resources is
// checked by those who decide (controller/plan) and by the store (references exist, unique keys are unique).
//
// Resources are immutable once they were put into a store: Clone before a change, and replace slices and maps instead
// of editing them, for Clone is shallow.
//
// A resource's status is never stored. Derive joins it from intent and observation whenever somebody reads.
package resource

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"shoal/desired"
)

// Kind is the sort of a resource. It is also the noun of its shoalctl command and a token of its subjects.
type Kind string

// The kinds.
const (
	KindZone         Kind = "zone"
	KindCluster      Kind = "cluster"
	KindHost         Kind = "host"
	KindStorage      Kind = "storage"
	KindImage        Kind = "image"
	KindOffering     Kind = "offering"
	KindDiskOffering Kind = "diskoffering"
	KindVXLANPool    Kind = "vxlanpool"
	KindL2           Kind = "l2"
	KindL3           Kind = "l3"
	KindIPRange      Kind = "iprange"
	KindSecGroup     Kind = "secgroup"
	KindSecRule      Kind = "secrule"
	KindVM           Kind = "vm"
	KindNIC          Kind = "nic"
	KindVolume       Kind = "volume"
	KindTask         Kind = "task"
	KindAccount      Kind = "account"
	KindPolicy       Kind = "policy"
	KindGroup        Kind = "group"
	KindUser         Kind = "user"
	KindSession      Kind = "session"
	KindShare        Kind = "share"
	KindHostToken    Kind = "hosttoken"
	KindEnrolment    Kind = "enrolment"
	KindRevocation   Kind = "revocation"
)

// Kinds that are no resources and have tasks: work of the leading controller itself, which ends them.
const (
	KindBackup Kind = "backup"
	KindSite   Kind = "site"
	KindAhead  Kind = "ahead"
)

// Kinds lists every kind, parents before children.
func Kinds() []Kind {
	return []Kind{
		KindAccount, KindPolicy, KindGroup, KindUser, KindSession, KindZone, KindCluster, KindRelease, KindHost, KindHostToken, KindEnrolment, KindStorage, KindImage, KindOffering, KindDiskOffering, KindVXLANPool, KindL2, KindL3,
		KindIPRange, KindSecGroup, KindSecRule, KindVM, KindNIC, KindVolume, KindShare, KindRevocation, KindTask, KindPlan, KindRollout,
	}
}

// New is an empty resource of a kind, to decode into; nil for an unknown kind.
func New(kind Kind) Resource {
	switch kind {
	case KindZone:
		return &Zone{}
	case KindCluster:
		return &Cluster{}
	case KindHost:
		return &Host{}
	case KindStorage:
		return &Storage{}
	case KindImage:
		return &Image{}
	case KindOffering:
		return &Offering{}
	case KindDiskOffering:
		return &DiskOffering{}
	case KindVXLANPool:
		return &VXLANPool{}
	case KindL2:
		return &L2{}
	case KindL3:
		return &L3{}
	case KindIPRange:
		return &IPRange{}
	case KindSecGroup:
		return &SecGroup{}
	case KindSecRule:
		return &SecRule{}
	case KindVM:
		return &VM{}
	case KindNIC:
		return &NIC{}
	case KindVolume:
		return &Volume{}
	case KindTask:
		return &Task{}
	case KindAccount:
		return &Account{}
	case KindPolicy:
		return &Policy{}
	case KindGroup:
		return &Group{}
	case KindUser:
		return &User{}
	case KindSession:
		return &Session{}
	case KindShare:
		return &Share{}
	case KindHostToken:
		return &HostToken{}
	case KindEnrolment:
		return &Enrolment{}
	case KindRevocation:
		return &Revocation{}
	case KindPlan:
		return &Plan{}
	case KindRelease:
		return &Release{}
	case KindRollout:
		return &Rollout{}
	default:
		return nil
	}
}

// Resource is a thing that users see. All methods but Validate also work on a nil pointer of the type where they need
// no field.
type Resource interface {
	Kind() Kind
	// Base is the part that every resource has.
	Base() *Meta
	// Validate checks the resource's own fields; the error is an *Error that names the field.
	Validate() error
	// Refs are the resources that it names.
	Refs() []Ref
	// Unique are keys that no other resource, of whatever kind, may have at the same time.
	Unique() []string
	// Clone is a shallow copy.
	Clone() Resource
}

// Meta is the part that every resource has.
type Meta struct {
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Owner       string   `json:"owner,omitempty"`
	Tags        []string `json:"tags,omitempty"`
	// Created and Updated are in UTC. The store sets them.
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	// Rev is the journal sequence of the last change, Cause the request that made it. The store sets them.
	Rev   uint64 `json:"rev"`
	Cause string `json:"cause,omitempty"`
}

// Base is the part that every resource has.
func (m *Meta) Base() *Meta { return m }

// Unique: most kinds have no unique keys.
func (m *Meta) Unique() []string { return nil }

// Refs: top-level kinds name nothing.
func (m *Meta) Refs() []Ref { return nil }

// Limits of names and texts, in bytes.
const (
	MaxName        = 128
	MaxDescription = 2048
	MaxTags        = 64
	MaxTag         = 256
)

// validateMeta checks what every resource has.
func (m *Meta) validateMeta() error {
	if err := CheckName("name", m.Name); err != nil {
		return err
	}
	if len(m.Description) > MaxDescription {
		return Invalid("description", "is %d bytes long, at most %d are allowed", len(m.Description), MaxDescription)
	}
	if len(m.Tags) > MaxTags {
		return Invalid("tags", "has %d entries, at most %d are allowed", len(m.Tags), MaxTags)
	}
	for i, t := range m.Tags {
		if t == "" || len(t) > MaxTag || !utf8.ValidString(t) {
			return Invalid(fmt.Sprintf("tags[%d]", i), "must be 1 to %d bytes of UTF-8", MaxTag)
		}
	}
	return nil
}

// CheckName holds a name to 1 to MaxName bytes of printable UTF-8 without leading or trailing space.
func CheckName(field, s string) error {
	switch {
	case s == "":
		return Invalid(field, "must not be empty")
	case len(s) > MaxName:
		return Invalid(field, "is %d bytes long, at most %d are allowed", len(s), MaxName)
	case !utf8.ValidString(s):
		return Invalid(field, "is not valid UTF-8")
	case strings.TrimSpace(s) != s:
		return Invalid(field, "must not start or end with white space")
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return Invalid(field, "holds a character that can't be printed")
	}
	return nil
}

// Mode says what a reference means when its target is to be deleted.
type Mode string

// The modes.
const (
	Parent Mode = "parent" // the resource goes with its target
	Needs  Mode = "needs"  // the target can't be deleted while it is named
	Link   Mode = "link"   // the target is taken out of the resource's list (Unlinker)
	Weak   Mode = "weak"   // where it came from; the target may be gone
)

// Ref is a reference from one resource to another.
type Ref struct {
	Kind Kind
	ID   string
	Mode Mode
	// Field is the JSON name of the field that holds it.
	Field string
}

// refs drops references that are not set.
func refs(all ...Ref) []Ref {
	return slices.DeleteFunc(all, func(r Ref) bool { return r.ID == "" })
}

// linkAll makes references of mode Link of a list.
func linkAll(kind Kind, field string, ids []string) []Ref {
	out := make([]Ref, len(ids))
	for i, id := range ids {
		out[i] = Ref{kind, id, Link, field}
	}
	return out
}

// without is the list without one entry, in memory of its own.
func without(ids []string, id string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(s string) bool { return s == id })
}

// Secretive is a resource with fields that nobody may read.
type Secretive interface {
	// Redacted is a copy without them.
	Redacted() Resource
}

// Unlinker is a resource with references of mode Link.
type Unlinker interface {
	// Unlink gives a copy without the reference to that resource.
	Unlink(kind Kind, id string) Resource
}

// State is the switch that administrators have.
type State string

// The states. A disabled resource goes on working; nothing new is put on it.
const (
	Enabled  State = "enabled"
	Disabled State = "disabled"
)

func (s State) validate() error {
	if s != Enabled && s != Disabled {
		return Invalid("state", "%q is neither enabled nor disabled", s)
	}
	return nil
}

// Decode reads a resource of a kind from JSON, as the journal holds it.
func Decode(kind Kind, b []byte) (Resource, error) {
	r := New(kind)
	if r == nil {
		return nil, fmt.Errorf("decode resource: kind %q is not known", kind)
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("decode %s: %w", kind, err)
	}
	return r, nil
}

// Reader is a consistent view of all resources at one journal sequence, joined with what was observed. What it
// returns must not be changed.
type Reader interface {
	// Seq is the journal sequence of the view.
	Seq() uint64
	// Get is the resource, or nil.
	Get(kind Kind, id string) Resource
	// All are the resources of a kind, ordered by id.
	All(kind Kind) iter.Seq[Resource]
	// Owned are the resources of a kind that belong to an account, ordered by id.
	Owned(kind Kind, account string) iter.Seq[Resource]
	// Named are the resources of a kind with that name.
	Named(kind Kind, name string) iter.Seq[Resource]
	// Referrers are the resources of kind from that name the resource (kind, id), in whatever mode.
	Referrers(from Kind, kind Kind, id string) iter.Seq[Resource]
	// Holder is the resource that has a unique key, or nil.
	Holder(key string) Resource
	// HoldersFrom are the unique keys with a prefix, from a key on, in byte order. It is how free addresses are found.
	HoldersFrom(prefix, from string) iter.Seq[string]
	// Observed is what hosts and publisher reported.
	Observed() Observed
}

// Observed is what agents reported and what was published to them, at one moment. It is not part of the journal.
type Observed interface {
	// Status is what a host reported of an item.
	Status(host string, ref desired.Ref) (desired.Status, bool)
	// Host is what is known of a host as a whole.
	Host(host string) HostObservation
	// Drifted are the items that others have changed since their agents started, with what their hosts report of them, ordered
	// by host and name.
	Drifted() iter.Seq2[HostItem, desired.Status]
	// Published is the item of a host as it was last written for its agent.
	Published(host string, ref desired.Ref) (PublishedItem, bool)
	// PublishedGen is the generation that was last written for a host.
	PublishedGen(host string) uint64
	// PublishedSeq is the journal sequence up to which every host's document has been rendered and written.
	PublishedSeq() uint64
}

// HostObservation is what is known of a host as a whole.
type HostObservation struct {
	// Connected says that the agent is connected now, Since when that last changed.
	Connected bool
	Since     time.Time
	// Reported says that Facts are there.
	Reported bool
	Facts    desired.HostFacts
}

// PublishedItem is an item as the publisher wrote it.
type PublishedItem struct {
	Rev   uint64
	Cause string
}

// Tx is a Reader with the changes of one transaction. A function that runs on it does no I/O and takes time, ids and
// randomness from here only, so that it can be run again.
type Tx interface {
	Reader
	// Put adds or replaces a resource. It validates, checks that references exist and that unique keys are free,
	// and sets Rev, Cause, Created and Updated; the resource belongs to the store from then on.
	Put(r Resource) error
	// Delete takes a resource out. It refuses while another names it in mode Parent, Needs or Link; see plan.Delete
	// for the cascade.
	Delete(kind Kind, id string) error
	// Now is the transaction's time, in UTC.
	Now() time.Time
	// NewID makes a UUID.
	NewID() string
	// Uint64 gives random bits.
	Uint64() uint64
	// Request is who wants this, and why.
	Request() Request
	// Answer says what the caller will be told, as JSON without secrets: the journal keeps it beside the changes. With an answer also
	// a call that changes nothing is kept.
	Answer(reply json.RawMessage)
}

// Request is who wants a transaction.
type Request struct {
	// ID is the request's id, made by the client; it is the Cause of everything that follows.
	ID string `json:"id"`
	// Caller is who asks, as the server vouches for it: an account's or user's id, the name in a credentials file, or
	// "controller" for decisions of its own.
	Caller string `json:"caller"`
	// Account is the caller's account; what is made belongs to it. Empty for the controller.
	Account string `json:"account,omitempty"`
	// Session is the caller's session, From the address that the request came from.
	Session string `json:"session,omitempty"`
	From    string `json:"from,omitempty"`
	// Op is "<kind>.<verb>".
	Op string `json:"op"`
	// Params are the call's parameters with secrets masked.
	Params json.RawMessage `json:"params,omitempty"`
	// Started is when the controller got the call, in UTC.
	Started time.Time `json:"started,omitzero"`
	// Admin says that the caller may do everything. It is of use while the call is worked on, and not kept.
	Admin bool `json:"-"`
}

// Owner is the account that what the request makes belongs to.
func (r Request) Owner() string { return cmp.Or(r.Account, r.Caller) }

// CallerController is the caller of decisions that the controller takes by itself.
const CallerController = "controller"

// Get finds a resource by id; the error says what is missing.
func Get[T Resource](r Reader, id string) (T, error) {
	var zero T
	found := r.Get(zero.Kind(), id)
	if found == nil {
		return zero, NotFound(zero.Kind(), id)
	}
	return found.(T), nil
}

// Find finds a resource by id; ok is false where it is missing.
func Find[T Resource](r Reader, id string) (t T, ok bool) {
	var zero T
	found := r.Get(zero.Kind(), id)
	if found == nil {
		return zero, false
	}
	return found.(T), true
}

// All are the resources of a type.
func All[T Resource](r Reader) iter.Seq[T] {
	var zero T
	return typed[T](r.All(zero.Kind()))
}

// Referrers are the resources of a type that name another.
func Referrers[T Resource](r Reader, kind Kind, id string) iter.Seq[T] {
	var zero T
	return typed[T](r.Referrers(zero.Kind(), kind, id))
}

func typed[T Resource](seq iter.Seq[Resource]) iter.Seq[T] {
	return func(yield func(T) bool) {
		for r := range seq {
			if !yield(r.(T)) {
				return
			}
		}
	}
}

// Owned are the resources of a type that belong to an account.
func Owned[T Resource](r Reader, account string) iter.Seq[T] {
	var zero T
	return typed[T](r.Owned(zero.Kind(), account))
}

// Copy is a clone with its type.
func Copy[T Resource](r T) T { return r.Clone().(T) }

// ByName orders resources by name, then id.
func ByName[T Resource](a, b T) int {
	return cmp.Or(strings.Compare(a.Base().Name, b.Base().Name), strings.Compare(a.Base().ID, b.Base().ID))
}
