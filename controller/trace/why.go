package trace

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"shoal/controller/resource"
	"shoal/desired"
)

// Item is an item of a host and the call behind it.
type Item struct {
	HostID    string      `json:"host_id"`
	Host      string      `json:"host"`
	Connected bool        `json:"connected"`
	Ref       desired.Ref `json:"ref"`
	// ResourceKind and Resource name what it belongs to.
	ResourceKind resource.Kind `json:"resource_kind,omitempty"`
	Resource     string        `json:"resource,omitempty"`
	// Wanted says that it is in the host's document, at Rev.
	Wanted bool   `json:"wanted"`
	Rev    uint64 `json:"rev,omitempty"`
	// Status is what the host reports.
	Status *desired.Status `json:"status,omitempty"`
	// Answer says how it stands in a sentence, Call who made it so.
	Answer string `json:"answer"`
	Call   *Call  `json:"call,omitempty"`
	// Note says why the call is not shown.
	Note string `json:"note,omitempty"`
}

// VM is why a VM does what it does, and the call behind it.
type VM struct {
	resource.Answer
	Call *Call  `json:"call,omitempty"`
	Note string `json:"note,omitempty"`
}

// VM answers why a VM runs or doesn't.
func (t *Tracer) VM(ctx context.Context, r resource.Reader, vm *resource.VM) (*VM, error) {
	out := &VM{Answer: resource.WhyVM(r, vm)}
	var err error
	out.Call, out.Note, err = t.behind(ctx, cmp.Or(out.Request, vm.Cause))
	return out, err
}

// Item answers why an item of a host is what it is. name is its id, or the name of what it belongs to.
func (t *Tracer) Item(ctx context.Context, r resource.Reader, h *resource.Host, item string) (*Item, error) {
	ref, err := findItem(r, h, item)
	if err != nil {
		return nil, err
	}
	o := r.Observed()
	out := &Item{HostID: h.ID, Host: h.Name, Connected: o.Host(h.ID).Connected, Ref: ref}
	if kind, id := resource.ItemResource(ref); kind != "" {
		out.ResourceKind, out.Resource = kind, id
		if res := r.Get(kind, id); res != nil {
			out.Resource = res.Base().Name
		}
	}
	p, wanted := o.Published(h.ID, ref)
	st, seen := o.Status(h.ID, ref)
	out.Wanted, out.Rev = wanted, p.Rev
	if seen {
		out.Status = &st
	}
	out.Answer = itemAnswer(out, p, st, seen)
	out.Call, out.Note, err = t.behind(ctx, cmp.Or(p.Cause, st.Cause))
	return out, err
}

func itemAnswer(it *Item, p resource.PublishedItem, st desired.Status, seen bool) string {
	var text string
	switch {
	case !it.Wanted && !seen:
		return "the host neither should have it nor has it"
	case !seen:
		text = "the host should have it and has not got to it yet"
	case !it.Wanted && st.Fault != nil:
		text = "the host should have it no more; it is still there: " + st.Fault.Message
	case !it.Wanted:
		text = "the host should have it no more and is taking it off"
	case st.Rev < p.Rev:
		text = fmt.Sprintf("the host has not got to revision %d yet; revision %d is %s", p.Rev, st.Rev, strings.ToLower(string(st.Phase)))
	case st.Phase == desired.PhaseReady:
		text = "it is as it should be since " + st.Since.UTC().Format("2006-01-02 15:04:05")
	case st.Fault != nil:
		text = strings.ToLower(string(st.Phase)) + ": " + st.Fault.Message
	default:
		text = strings.ToLower(string(st.Phase))
	}
	if !it.Connected {
		text = "the host is not heard of; as it last was: " + text
	}
	return text
}

// findItem finds what "<kind>.<id or name>" names on a host. The kind may be an item's or that of the resource it belongs to.
func findItem(r resource.Reader, h *resource.Host, item string) (desired.Ref, error) {
	kind, id, ok := strings.Cut(item, ".")
	if !ok || kind == "" || id == "" {
		return desired.Ref{}, resource.Invalid("item", "%q is not KIND.ID", item).WithRemedy("such as domain.web1, with the name or id of the VM")
	}
	of := map[desired.Kind]func(string) desired.Ref{
		desired.KindDomain: resource.DomainRef, desired.KindVolume: resource.VolumeRef, desired.KindPool: resource.PoolRef, desired.KindNetDev: resource.NetDevRef,
		desired.KindDHCP: resource.DHCPRef, desired.KindAddrSet: resource.AddrSetRef, desired.KindSecGroup: resource.SecGroupRef,
	}
	ref := desired.Ref{Kind: desired.Kind(kind), ID: id}
	o := r.Observed()
	known := func(ref desired.Ref) bool {
		_, published := o.Published(h.ID, ref)
		_, seen := o.Status(h.ID, ref)
		return published || seen
	}
	if known(ref) {
		return ref, nil
	}
	var found []desired.Ref
	for _, k := range desired.Kinds() {
		refOf := of[k]
		if refOf == nil {
			continue
		}
		belongs, _ := resource.ItemResource(refOf("x"))
		if string(k) != kind && string(belongs) != kind {
			continue
		}
		for res := range r.Named(belongs, id) {
			if known(refOf(res.Base().ID)) {
				found = append(found, refOf(res.Base().ID))
			}
		}
		if string(k) != kind && known(refOf(id)) {
			found = append(found, refOf(id))
		}
	}
	slices.SortFunc(found, desired.Ref.Compare)
	switch found = slices.Compact(found); len(found) {
	case 0:
		return ref, (&resource.Error{Code: resource.CodeNotFound, Field: "item", Message: fmt.Sprintf("host %s has no item %s, and should have none", h.Name, item)}).
			WithRemedy("give KIND.ID or KIND.NAME with a kind of item (%s) or of resource", kindList())
	case 1:
		return found[0], nil
	default:
		return ref, resource.Conflict("item", "%d items of host %s answer to %s", len(found), h.Name, item).WithRemedy("give an id: %s, %s", found[0], found[1])
	}
}

func kindList() string {
	var out []string
	for _, k := range desired.Kinds() {
		out = append(out, string(k))
	}
	return strings.Join(out, ", ")
}

// behind is the call with a request id; note says why there is none.
func (t *Tracer) behind(ctx context.Context, request string) (call *Call, note string, err error) {
	if request == "" {
		return nil, "which call made it so is not known", nil
	}
	found, err := t.Find(ctx, request)
	switch {
	case resource.HasCode(err, resource.CodeNotFound), resource.HasCode(err, resource.CodeInvalid):
		return nil, fmt.Sprintf("request %s made it so, which the journal does not have: it was before a compaction", request), nil
	case err != nil:
		return nil, "", err
	}
	c := callOf(found)
	return &c, "", nil
}
