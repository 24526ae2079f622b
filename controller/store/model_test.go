package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"shoal/controller/resource"
)

// model is what a store must do, as simple as can be: a map of resources that is searched from end to end.
type model map[changeKey]resource.Resource

func (m model) put(r resource.Resource) resource.ErrorCode {
	if r.Validate() != nil {
		return resource.CodeInvalid
	}
	me := changeKey{r.Kind(), r.Base().ID}
	for _, ref := range r.Refs() {
		if k := (changeKey{ref.Kind, ref.ID}); m[k] == nil && k != me && ref.Mode != resource.Weak {
			return resource.CodeNotFound
		}
	}
	for k, other := range m {
		for _, key := range other.Unique() {
			if k != me && slices.Contains(r.Unique(), key) {
				return resource.CodeConflict
			}
		}
	}
	m[me] = r.Clone()
	return ""
}

func (m model) delete(kind resource.Kind, id string) resource.ErrorCode {
	me := changeKey{kind, id}
	if m[me] == nil {
		return resource.CodeNotFound
	}
	for k, other := range m {
		for _, ref := range other.Refs() {
			if k != me && ref.Kind == kind && ref.ID == id && ref.Mode != resource.Weak {
				return resource.CodeInUse
			}
		}
	}
	delete(m, me)
	return ""
}

func (m model) dump() map[string]string {
	out := map[string]string{}
	for k, r := range m {
		out[string(k.kind)+"."+k.id] = r.Base().Name
		for _, key := range r.Unique() {
			out["key "+key] = string(k.kind) + "." + k.id
		}
	}
	return out
}

func modelOf(r resource.Reader) map[string]string {
	out := map[string]string{}
	for _, kind := range resource.Kinds() {
		for res := range r.All(kind) {
			out[string(kind)+"."+res.Base().ID] = res.Base().Name
		}
	}
	for key := range r.HoldersFrom("", "") {
		h := r.Holder(key)
		out["key "+key] = string(h.Kind()) + "." + h.Base().ID
	}
	return out
}

// drawResource makes a resource of few kinds with few ids, names and addresses, so that they collide.
func drawResource(t *rapid.T, ip int) resource.Resource {
	id := func(label string) string { return fmt.Sprint(rapid.IntRange(0, 3).Draw(t, label)) }
	m := resource.Meta{ID: id("id"), Name: rapid.SampledFrom([]string{"a", "b", ""}).Draw(t, "name")}
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0:
		return &resource.Zone{Meta: m, State: resource.Enabled}
	case 1:
		return &resource.Cluster{Meta: m, ZoneID: id("zone"), State: resource.Enabled}
	case 2:
		return &resource.L2{Meta: m, ZoneID: id("zone"), Type: resource.L2NoVLAN, Device: "eth0", ClusterIDs: []string{id("cluster")}}
	case 3:
		return &resource.L3{Meta: m, L2ID: id("l2"), Category: resource.CategoryPrivate, DHCPServer: netip.AddrFrom4([4]byte{10, 0, 0, byte(ip)})}
	case 4:
		return &resource.Host{Meta: m, ClusterID: id("cluster"), State: resource.Enabled, PublicKey: "U" + fmt.Sprintf("%055d", ip)}
	case 5:
		return &resource.VM{
			Meta: m, ZoneID: id("zone"), ClusterID: id("cluster"), HostID: id("host"), ImageID: id("image"), CPUs: 1, MemoryMiB: 64,
			Strategy: resource.MostFree, Machine: "pc", Power: "on",
		}
	default:
		return &resource.NIC{
			Meta: m, VMID: id("vm"), L3ID: id("l3"), IP: netip.AddrFrom4([4]byte{10, 0, 0, byte(ip)}), MAC: fmt.Sprintf("52:54:00:00:00:%02x", ip), Model: "virtio",
		}
	}
}

// Random transactions on a store and on the model: the same are refused for the same reason, and the outcome is the same,
// also as a stand-by and a new start see it.
func TestModel(t *testing.T) {
	b := newBus(t)
	rapid.Check(t, func(rt *rapid.T) {
		ctx, cancel := context.WithCancel(testContext(t))
		defer cancel()
		s := b.store(ctx, b.connect())
		standby := b.store(ctx, b.connect())
		following := make(chan error, 1)
		go func() { following <- standby.Follow(ctx) }()
		defer func() { cancel(); <-following }()
		m := lead(ctx, t, s)
		defer m.end()
		// Every check starts with what the one before has left.
		want := model{}
		for _, kind := range resource.Kinds() {
			for r := range s.View().All(kind) {
				want[changeKey{kind, r.Base().ID}] = r
			}
		}
		n := 0
		refusal := errors.New("changed my mind")
		rt.Repeat(map[string]func(*rapid.T){
			"transaction": func(rt *rapid.T) {
				n++
				next := maps.Clone(want)
				give := rapid.IntRange(0, 9).Draw(rt, "mind") == 0
				type op struct {
					put resource.Resource
					del changeKey
				}
				var ops []op
				for range rapid.IntRange(1, 6).Draw(rt, "ops") {
					r := drawResource(rt, rapid.IntRange(1, 5).Draw(rt, "ip"))
					if rapid.IntRange(0, 3).Draw(rt, "delete") == 0 {
						ops = append(ops, op{del: changeKey{r.Kind(), r.Base().ID}})
					} else {
						ops = append(ops, op{put: r})
					}
				}
				_, err := s.Commit(ctx, request(""), func(tx resource.Tx) error {
					for _, o := range ops {
						var err error
						var code resource.ErrorCode
						if o.put != nil {
							err, code = tx.Put(o.put.Clone()), next.put(o.put)
						} else {
							err, code = tx.Delete(o.del.kind, o.del.id), next.delete(o.del.kind, o.del.id)
						}
						if code == "" && err != nil || code != "" && !isCode(err, code) {
							rt.Errorf("%+v gives %v, the model says %q", o, err, code)
						}
					}
					if diff := cmp.Diff(next.dump(), modelOf(tx)); diff != "" {
						rt.Errorf("inside the transaction (-model +store):\n%s", diff)
					}
					if give {
						return refusal
					}
					return nil
				})
				if give != errors.Is(err, refusal) || !give && err != nil {
					rt.Fatalf("commit: %v", err)
				}
				if !give {
					want = next
				}
			},
			"": func(rt *rapid.T) {
				if diff := cmp.Diff(want.dump(), modelOf(s.View())); diff != "" {
					rt.Fatalf("store (-model +store):\n%s", diff)
				}
			},
		})
		if err := standby.Await(ctx, func(r resource.Reader) bool { return r.Seq() == s.Seq() }); err != nil {
			rt.Fatal(err)
		}
		original := dump(t, s.View())
		if diff := cmp.Diff(original, dump(t, standby.View())); diff != "" {
			rt.Errorf("stand-by (-leader +stand-by):\n%s", diff)
		}
		if diff := cmp.Diff(original, dump(t, b.store(ctx, b.connect()).View())); diff != "" {
			rt.Errorf("loaded (-leader +loaded):\n%s", diff)
		}
		bare, err := New(Config{Journal: s.journal, Log: s.log})
		if err == nil {
			err = bare.Load(ctx)
		}
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(original, dump(t, bare.View())); diff != "" {
			rt.Errorf("loaded without the projection (-leader +loaded):\n%s", diff)
		}
	})
}
