package desired

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Kind is the sort of an item.
type Kind string

// The kinds, in the order in which a host needs them.
const (
	KindAgent    Kind = "agent"    // the release of the agent itself; its only id is AgentItemID. Spec: Agent
	KindNetDev   Kind = "netdev"   // a layer 2 network on the host: bridge, VLAN or VXLAN device. Spec: NetDev
	KindPool     Kind = "pool"     // a primary storage on the host. Spec: Pool
	KindImage    Kind = "image"    // an image in a pool's cache. Spec: Image
	KindDHCP     Kind = "dhcp"     // the DHCP and DNS server of a layer 3 network. Spec: DHCP
	KindAddrSet  Kind = "addrset"  // the member addresses of a security group. Spec: AddrSet
	KindSecGroup Kind = "secgroup" // the packet filter of one NIC. Spec: SecGroup
	KindVolume   Kind = "volume"   // a volume. Spec: Volume
	KindDomain   Kind = "domain"   // a libvirt domain. Spec: Domain

	// KindOrigin is for whoever has to put a lost controller together again; agents only keep it. Spec: Origin
	KindOrigin Kind = "origin"

	// KindHost is used by status only: what the agent reports of the host as a whole.
	KindHost Kind = "host"
)

// Kinds lists the kinds of items that hosts do something about, and report.
func Kinds() []Kind {
	return []Kind{KindAgent, KindNetDev, KindPool, KindImage, KindDHCP, KindAddrSet, KindSecGroup, KindVolume, KindDomain}
}

// Ref names an item.
type Ref struct {
	Kind Kind   `json:"kind"`
	ID   string `json:"id"`
}

// String is "<kind>.<id>", which is also the item's key.
func (r Ref) String() string { return string(r.Kind) + "." + r.ID }

// MarshalText makes a Ref usable as a key of a JSON object.
func (r Ref) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads "<kind>.<id>".
func (r *Ref) UnmarshalText(b []byte) error {
	kind, id, ok := strings.Cut(string(b), ".")
	if !ok || kind == "" || id == "" {
		return fmt.Errorf("parse ref %q: want <kind>.<id>", b)
	}
	*r = Ref{Kind(kind), id}
	return nil
}

// MarshalJSON keeps Ref a plain string everywhere, not only as a key. The zero Ref is the empty string.
func (r Ref) MarshalJSON() ([]byte, error) {
	if r == (Ref{}) {
		return []byte(`""`), nil
	}
	return json.Marshal(r.String())
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (r *Ref) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if s == "" {
		*r = Ref{}
		return nil
	}
	return r.UnmarshalText([]byte(s))
}

// Compare orders refs by kind, then id.
func (r Ref) Compare(o Ref) int {
	if c := strings.Compare(string(r.Kind), string(o.Kind)); c != 0 {
		return c
	}
	return strings.Compare(r.ID, o.ID)
}

// Item is one wanted thing on a host.
type Item struct {
	Kind Kind   `json:"kind"`
	ID   string `json:"id"`
	// Rev is the journal sequence at which Needs or Spec last changed.
	Rev uint64 `json:"rev"`
	// Needs are the items of this host that must be Ready first, sorted.
	Needs []Ref `json:"needs,omitempty"`
	// Cause is the id of the request that last changed the item.
	Cause string `json:"cause,omitempty"`
	// Spec is the canonical JSON of the kind's type.
	Spec json.RawMessage `json:"spec"`
}

// Ref is the item's name.
func (it Item) Ref() Ref { return Ref{it.Kind, it.ID} }

// NewItem builds an item around a typed spec. Rev and Cause are left to the publisher, who knows what changed.
func NewItem(kind Kind, id string, spec any, needs ...Ref) (Item, error) {
	b, err := Canonical(spec)
	if err != nil {
		return Item{}, fmt.Errorf("encode %s %s: %w", kind, id, err)
	}
	needs = slices.Clone(needs)
	slices.SortFunc(needs, Ref.Compare)
	return Item{Kind: kind, ID: id, Needs: slices.Compact(needs), Spec: b}, nil
}

// SameContent reports whether two items want the same thing, whatever their Rev and Cause.
func (it Item) SameContent(o Item) bool {
	return it.Kind == o.Kind && it.ID == o.ID && slices.Equal(it.Needs, o.Needs) && bytes.Equal(it.Spec, o.Spec)
}

// Encode is the item's canonical JSON, as it stands in the bucket.
func (it Item) Encode() ([]byte, error) { return Canonical(it) }

// Hash is the hash of an item's canonical bytes: the first 16 bytes of SHA-256 in hex.
func Hash(canonical []byte) string {
	h := sha256.Sum256(canonical)
	return hex.EncodeToString(h[:16])
}

// DecodeItem reads an item. The spec is not looked into: see DecodeSpec.
func DecodeItem(b []byte) (Item, error) {
	var it Item
	if err := decodeStrict(b, &it); err != nil {
		return Item{}, fmt.Errorf("decode item: %w", err)
	}
	if it.Kind == "" || it.ID == "" {
		return Item{}, errors.New("decode item: kind and id must be set")
	}
	return it, nil
}

// Policy says what an agent does about foreign changes of items of a kind.
type Policy string

// The drift policies.
const (
	PolicyHeal  Policy = "heal"  // bring it back; the default
	PolicyHold  Policy = "hold"  // report Drifted, touch nothing
	PolicyAdopt Policy = "adopt" // report what is there, so that the controller may take it over
)

// Valid reports whether it is one of them.
func (p Policy) Valid() bool { return p == PolicyHeal || p == PolicyHold || p == PolicyAdopt }

// Head is the index of a document.
type Head struct {
	// Schema is the version of the language of heads and items, 0 for the first. See DocumentSchema.
	Schema int    `json:"schema,omitempty"`
	Host   string `json:"host"`
	// Gen is the document's generation: the journal sequence it was rendered from.
	Gen uint64 `json:"gen"`
	// Items holds the hash of every item.
	Items map[Ref]string `json:"items"`
	// Shrink allows this generation to remove more running domains than the guard lets pass.
	Shrink bool `json:"shrink,omitempty"`
	// Policy overrides the drift policy by kind.
	Policy map[Kind]Policy `json:"policy,omitempty"`
}

// Encode is the head's canonical JSON.
func (h Head) Encode() ([]byte, error) { return Canonical(h) }

// DocumentSchema is the version of the language of heads and items that this program speaks. It grows when a field of Head or Item is added
// or means something else, and never for specs and kinds: an item with an unknown field or of an unknown kind is refused alone. A document
// of a higher schema is refused whole, and what was in force stays so.
const DocumentSchema = 0

// DecodeHead reads a head. One of a newer schema is a *Fault with code TooNew.
func DecodeHead(b []byte) (Head, error) {
	var h Head
	var newer struct {
		Schema int `json:"schema"`
	}
	if json.Unmarshal(b, &newer) == nil && newer.Schema > DocumentSchema {
		return Head{}, &Fault{
			Code: CodeTooNew, Message: fmt.Sprintf("the document speaks schema %d, and this program up to %d", newer.Schema, DocumentSchema), Remedy: CodeTooNew.Remedy(),
		}
	}
	if err := decodeStrict(b, &h); err != nil {
		return Head{}, fmt.Errorf("decode head: %w", err)
	}
	if h.Host == "" || h.Gen == 0 {
		return Head{}, errors.New("decode head: host and gen must be set")
	}
	if _, ok := h.Items[Ref{}]; ok {
		return Head{}, errors.New("decode head: an item has no name")
	}
	return h, nil
}

// Document is everything that one host must be. Items are keyed by their names.
type Document struct {
	Head  Head
	Items map[Ref]Item
}

// Refs lists the document's items in order.
func (d Document) Refs() []Ref {
	refs := make([]Ref, 0, len(d.Items))
	for r := range d.Items {
		refs = append(refs, r)
	}
	slices.SortFunc(refs, Ref.Compare)
	return refs
}

// Canonical is the one JSON encoding that hashes are taken over: struct order, sorted map keys, no HTML escaping,
// no trailing newline.
func Canonical(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// decodeStrict refuses unknown fields and trailing data.
func decodeStrict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the value")
	}
	return nil
}

// Spec is a kind's typed content.
type Spec interface {
	// Validate names the first field that is wrong.
	Validate() error
}

// DecodeSpec reads an item's spec into its kind's type, strictly, and validates it. An unknown field is a *Fault with
// code TooNew: the controller speaks a newer language, and half of a document must never be applied.
func DecodeSpec[T any, P interface {
	*T
	Spec
}](it Item) (T, error) {
	var spec T
	if err := decodeStrict(it.Spec, &spec); err != nil {
		code := CodeInvalid
		if strings.Contains(err.Error(), "unknown field") {
			code = CodeTooNew
		}
		return spec, &Fault{Code: code, Message: fmt.Sprintf("decode %s: %v", it.Ref(), err)}
	}
	if err := P(&spec).Validate(); err != nil {
		return spec, &Fault{Code: CodeInvalid, Message: fmt.Sprintf("validate %s: %v", it.Ref(), err)}
	}
	return spec, nil
}
