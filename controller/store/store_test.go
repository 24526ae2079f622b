package store

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/subjects"
)

func TestMain(m *testing.M) {
	// Every check is a new pair of stores and dozens of transactions on a real stream; -rapid.checks=N does more.
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// dump is everything in a view, as JSON by key, with its unique keys and who names what.
func dump(t testing.TB, r resource.Reader) map[string]string {
	t.Helper()
	out := map[string]string{"seq": fmt.Sprint(r.Seq())}
	for _, kind := range resource.Kinds() {
		for res := range r.All(kind) {
			b, err := encodeResource(res)
			if err != nil {
				t.Fatal(err)
			}
			key := subjects.ResourceKey(string(kind), res.Base().ID)
			out[key] = string(b)
			for _, u := range res.Unique() {
				if h := r.Holder(u); h == nil || h.Base().ID != res.Base().ID {
					t.Errorf("the holder of %s is %v, not %s", u, h, key)
				}
			}
			for _, ref := range res.Refs() {
				if !slices.ContainsFunc(slices.Collect(r.Referrers(kind, ref.Kind, ref.ID)), func(x resource.Resource) bool { return x.Base().ID == res.Base().ID }) {
					t.Errorf("%s is not found as one that names %s %s", key, ref.Kind, ref.ID)
				}
			}
		}
	}
	for key := range r.HoldersFrom("", "") {
		h := r.Holder(key)
		if h == nil || !slices.Contains(h.Unique(), key) {
			t.Errorf("key %s is held by %v", key, h)
		}
		out["key "+key] = "held"
	}
	return out
}

func TestCommitAndRead(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	if _, err := s.Commit(ctx, request("early"), putZone("z")); !errors.Is(err, ErrNotLeading) || !isCode(err, resource.CodeNotLeader) {
		t.Fatalf("commit of a store that does not lead: %v", err)
	}
	lead(ctx, t, s)
	empty := s.View()
	if seq := commit(ctx, t, s, "world", benchWorld); seq != 1 {
		t.Fatalf("the first commit has sequence %d", seq)
	}
	var vm *resource.VM
	commit(ctx, t, s, "vm", func(tx resource.Tx) error {
		if tx.Request().ID != "vm" {
			t.Errorf("the request is %+v", tx.Request())
		}
		vm = benchVM(tx)
		return errors.Join(tx.Put(vm), tx.Put(benchNIC(tx, vm.ID, 7)), tx.Put(benchNIC(tx, vm.ID, 5)))
	})
	if empty.Get(resource.KindZone, "z") != nil || empty.Seq() != 0 {
		t.Error("a view has changed")
	}
	v := s.View()
	got, err := resource.Get[*resource.VM](v, vm.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.Rev != 2 || got.Cause != "vm" || got.Created.IsZero() || got.Created != got.Updated || v.Seq() != 2 {
		t.Errorf("stamps: %+v in view %d", got.Meta, v.Seq())
	}
	if n := len(slices.Collect(v.Referrers(resource.KindNIC, resource.KindVM, vm.ID))); n != 2 {
		t.Errorf("%d NICs name the VM, want 2", n)
	}
	if n := len(slices.Collect(v.Referrers(resource.KindVM, resource.KindOffering, "none"))); n != 0 {
		t.Errorf("%d VMs name an offering that none has", n)
	}
	if n := len(slices.Collect(v.Named(resource.KindVM, "web"))); n != 1 {
		t.Errorf("%d VMs are named web, want 1", n)
	}
	if n := len(slices.Collect(v.Named(resource.KindVM, "we"))); n != 0 {
		t.Errorf("%d VMs are named we", n)
	}
	prefix := resource.AddressPrefix("l3")
	addr := func(n byte) string { return resource.AddressKey("l3", netip.AddrFrom4([4]byte{10, 0, 0, n})) }
	if diff := cmp.Diff([]string{addr(5), addr(7)}, slices.Collect(v.HoldersFrom(prefix, ""))); diff != "" {
		t.Errorf("addresses in use (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{addr(7)}, slices.Collect(v.HoldersFrom(prefix, addr(6)))); diff != "" {
		t.Errorf("addresses in use from .6 (-want +got):\n%s", diff)
	}
	if v.Get("nonsense", "x") != nil || len(slices.Collect(v.All("nonsense"))) != 0 {
		t.Error("there are resources of an unknown kind")
	}
	// An update keeps the time of creation.
	commit(ctx, t, s, "update", func(tx resource.Tx) error {
		vm := resource.Copy(got)
		vm.Name = "db"
		return tx.Put(vm)
	})
	if vm := s.View().Get(resource.KindVM, vm.ID).Base(); vm.Created != got.Created || vm.Rev != 3 || vm.Updated.Before(got.Updated) {
		t.Errorf("stamps after the update: %+v", vm)
	}
	if n := len(slices.Collect(s.View().Named(resource.KindVM, "web"))); n != 0 {
		t.Error("the old name is still in the index")
	}
	dump(t, s.View())
}

func TestRefusals(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	lead(ctx, t, s)
	commit(ctx, t, s, "world", benchWorld)
	commit(ctx, t, s, "vm", func(tx resource.Tx) error {
		vm := benchVM(tx)
		vm.ID = "vm"
		nic := benchNIC(tx, "vm", 5)
		nic.ID = "nic"
		return errors.Join(tx.Put(vm), tx.Put(nic))
	})
	before := dump(t, s.View())
	for name, c := range map[string]struct {
		fn   func(tx resource.Tx) error
		code resource.ErrorCode
		want string
	}{
		"invalid": {func(tx resource.Tx) error {
			return tx.Put(&resource.Zone{Meta: resource.Meta{ID: "y"}, State: resource.Enabled})
		}, resource.CodeInvalid, "name: must not be empty"},
		"id": {func(tx resource.Tx) error {
			z := zone("ok")
			z.ID = "a.b"
			return tx.Put(z)
		}, resource.CodeInvalid, "id: "},
		"reference": {func(tx resource.Tx) error {
			return tx.Put(&resource.Cluster{Meta: resource.Meta{ID: "c2", Name: "c2"}, ZoneID: "nowhere", State: resource.Enabled})
		}, resource.CodeNotFound, `zone_id: no zone has the id "nowhere"`},
		"address": {func(tx resource.Tx) error {
			n := benchNIC(tx, "vm", 5)
			n.MAC = "52:54:00:ff:ff:ff"
			return tx.Put(n)
		}, resource.CodeConflict, "ip: address 10.0.0.5 is taken: nic nic0"},
		"mac": {func(tx resource.Tx) error {
			n := benchNIC(tx, "vm", 5)
			n.IP = netip.MustParseAddr("10.9.9.9")
			return tx.Put(n)
		}, resource.CodeConflict, "mac: MAC 52:54:00:00:00:05 is taken: nic nic0"},
		"host name": {func(tx resource.Tx) error {
			h := resource.Copy(tx.Get(resource.KindHost, "h").(*resource.Host))
			h.ID, h.PublicKey = "h2", "U"+strings.Repeat("A", 55)
			return tx.Put(h)
		}, resource.CodeConflict, `name: name "h" is taken: host h`},
		"delete missing": {func(tx resource.Tx) error { return tx.Delete(resource.KindVM, "none") }, resource.CodeNotFound, "no vm"},
		"delete used":    {func(tx resource.Tx) error { return tx.Delete(resource.KindVM, "vm") }, resource.CodeInUse, "vm: vm web is still in use: nic nic0: names it as vm_id"},
		"too much": {func(tx resource.Tx) error {
			for i := range 600 {
				z := zone(fmt.Sprint("many", i))
				z.Description = strings.Repeat("x", 2000)
				if err := tx.Put(z); err != nil {
					return err
				}
			}
			return nil
		}, resource.CodeCapacity, "request: test.run changes 602 resources at once"},
		"panic": {func(resource.Tx) error { panic("ouch") }, resource.CodeInternal, "panic: ouch"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Commit(ctx, request(name), func(tx resource.Tx) error {
				// What was done before the refusal must go too.
				if err := tx.Put(zone("trace")); err != nil {
					return err
				}
				z := resource.Copy(tx.Get(resource.KindZone, "z").(*resource.Zone))
				z.Description = "touched"
				return errors.Join(tx.Put(z), c.fn(tx))
			})
			if !isCode(err, c.code) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want code %s and text %q", err, c.code, c.want)
			}
			if diff := cmp.Diff(before, dump(t, s.View())); diff != "" {
				t.Errorf("it left a trace (-before +after):\n%s", diff)
			}
		})
	}
	t.Run("many users", func(t *testing.T) {
		commit(ctx, t, s, "more", func(tx resource.Tx) error {
			for i := range 7 {
				if err := tx.Put(benchNIC(tx, "vm", uint32(100+i))); err != nil {
					return err
				}
			}
			return nil
		})
		_, err := s.Commit(ctx, request("many"), func(tx resource.Tx) error { return tx.Delete(resource.KindVM, "vm") })
		var e *resource.Error
		if !errors.As(err, &e) || len(e.Reasons) != maxUsers || !strings.Contains(e.Message, "by 8") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("after the end", func(t *testing.T) {
		var kept resource.Tx
		commit(ctx, t, s, "kept", func(tx resource.Tx) error { kept = tx; return tx.Put(zone("k")) })
		if err := kept.Put(zone("late")); err == nil {
			t.Error("a transaction takes changes after its end")
		}
	})
}

func TestKeyMeaningKnowsEveryKey(t *testing.T) {
	ip := netip.MustParseAddr("10.0.0.5")
	for _, r := range []resource.Resource{
		&resource.NIC{L3ID: "l3", MAC: "52:54:00:00:00:01", IP: ip}, &resource.L3{Meta: resource.Meta{ID: "l3"}, DHCPServer: ip},
		&resource.L2{Type: resource.L2VXLAN, PoolID: "p", VNI: 7}, &resource.Volume{VMID: "vm", Target: "vda"}, &resource.Task{RequestID: "r"},
		&resource.SecRule{}, &resource.Host{Meta: resource.Meta{Name: "n"}, PublicKey: "U"},
	} {
		for _, key := range r.Unique() {
			if field, what := keyMeaning(key); field == "" || strings.Contains(what, "ip/") || strings.HasPrefix(what, "key ") {
				t.Errorf("key %s of %s means %q, %q", key, r.Kind(), field, what)
			}
		}
	}
	if _, what := keyMeaning(resource.AddressKey("l3", ip)); what != "address 10.0.0.5" {
		t.Errorf("an address key means %q", what)
	}
}

// Callers that share groups do not share their fate, and see what came before them.
func TestConcurrentCommits(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	lead(ctx, t, s)
	commit(ctx, t, s, "counter", putZone("counter"))
	const callers, rounds = 32, 20
	refused := errors.New("refused")
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range rounds {
				id := fmt.Sprintf("z-%d-%d", c, i)
				seq, err := s.Commit(ctx, request(id), func(tx resource.Tx) error {
					if err := tx.Put(zone(id)); err != nil {
						return err
					}
					z := resource.Copy(tx.Get(resource.KindZone, "counter").(*resource.Zone))
					z.Tags = []string{fmt.Sprint(len(slices.Collect(tx.All(resource.KindZone))) - 1)}
					if err := tx.Put(z); err != nil {
						return err
					}
					if i%4 == 3 {
						return refused
					}
					return nil
				})
				if i%4 == 3 {
					if !errors.Is(err, refused) {
						t.Errorf("%s: %v, want its own error", id, err)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", id, err)
					continue
				}
				z := s.View().Get(resource.KindZone, id)
				if z == nil || z.Base().Rev != seq {
					t.Errorf("%s is acknowledged with %d and is %v", id, seq, z)
				}
			}
		})
	}
	wg.Wait()
	const want = callers * rounds * 3 / 4
	if got := s.View().Get(resource.KindZone, "counter").(*resource.Zone).Tags[0]; got != fmt.Sprint(want) {
		t.Errorf("the transactions counted %s zones, want %d", got, want)
	}
	if last := s.Seq(); last >= want {
		t.Errorf("%d commits made %d messages: there was no group", want, last)
	}
	again := b.store(ctx, b.connect())
	if diff := cmp.Diff(dump(t, s.View()), dump(t, again.View())); diff != "" {
		t.Errorf("read from the journal (-leader +loaded):\n%s", diff)
	}
}

func TestRepeatedRequest(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	standby := b.store(ctx, b.connect())
	following := make(chan error, 1)
	fctx, stop := context.WithCancel(ctx)
	go func() { following <- standby.Follow(fctx) }()
	m := lead(ctx, t, s)
	seq := commit(ctx, t, s, "once", putZone("z"))
	again := func(t *testing.T, s *Store) {
		t.Helper()
		got, err := s.Commit(ctx, request("once"), func(resource.Tx) error { t.Error("it ran again"); return nil })
		if !errors.Is(err, ErrRepeated) || got != seq {
			t.Errorf("got %d, %v, want %d and ErrRepeated", got, err, seq)
		}
	}
	again(t, s)
	var wg sync.WaitGroup
	var mu sync.Mutex
	results := map[bool]int{}
	for range 20 {
		wg.Go(func() {
			_, err := s.Commit(ctx, request("race"), putZone("race"))
			if err != nil && !errors.Is(err, ErrRepeated) {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			results[err == nil]++
		})
	}
	wg.Wait()
	if results[true] != 1 || results[false] != 19 {
		t.Errorf("of 20 equal requests %d were committed and %d repeated", results[true], results[false])
	}
	// A refused request left no trace: it may be repeated, and then runs.
	if _, err := s.Commit(ctx, request("refused"), func(resource.Tx) error { return errors.New("no") }); err == nil {
		t.Error("it was not refused")
	}
	commit(ctx, t, s, "refused", putZone("now"))

	if err := standby.Await(ctx, func(r resource.Reader) bool { return r.Seq() == s.Seq() }); err != nil {
		t.Fatal(err)
	}
	stop()
	<-following
	awaitProjection(ctx, t, s)
	if err := m.end(); !errors.Is(err, context.Canceled) {
		t.Errorf("the term ended with %v", err)
	}
	t.Run("stand-by", func(t *testing.T) { m := lead(ctx, t, standby); again(t, standby); m.end() })
	t.Run("loaded", func(t *testing.T) { s := b.store(ctx, b.connect()); lead(ctx, t, s); again(t, s) })
}

func TestFence(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	one, two := b.store(ctx, b.connect()), b.store(ctx, b.connect())
	m1 := lead(ctx, t, one)
	commit(ctx, t, one, "a", putZone("a"))
	m2 := lead(ctx, t, two) // catches up by itself
	commit(ctx, t, two, "b", putZone("b"))
	if _, err := one.Commit(ctx, request("c"), putZone("c")); !errors.Is(err, ErrNotLeading) {
		t.Fatalf("commit of the one who lost the lead: %v", err)
	}
	<-m1.ended
	if !errors.Is(m1.err, journal.ErrFenced) || one.Leading() {
		t.Errorf("its term ended with %v", m1.err)
	}
	if one.View().Get(resource.KindZone, "c") != nil {
		t.Error("what was not stored is visible")
	}
	m2.end()
	lead(ctx, t, one)
	commit(ctx, t, one, "d", putZone("d"))
	got := slices.Sorted(maps.Keys(dump(t, b.store(ctx, b.connect()).View())))
	if diff := cmp.Diff([]string{"seq", "zone.a", "zone.b", "zone.d"}, got); diff != "" {
		t.Errorf("zones (-want +got):\n%s", diff)
	}
}

// Two stores fight for the lead, each by force, under load: nobody overwrites anything, nothing acknowledged is missing.
func TestTwoLeadersFight(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	var mu sync.Mutex
	acked := map[string]bool{}
	var wg sync.WaitGroup
	for n := range 2 {
		s := b.store(ctx, b.connect())
		lctx, cancel := context.WithCancel(ctx)
		defer cancel()
		wg.Go(func() {
			for lctx.Err() == nil {
				if err := s.Lead(lctx); err != nil && !errors.Is(err, journal.ErrFenced) && !errors.Is(err, context.Canceled) {
					t.Errorf("lead: %v", err)
					return
				}
			}
		})
		var callers sync.WaitGroup
		for c := range 4 {
			callers.Go(func() {
				for i := 0; i < 30; {
					id := fmt.Sprintf("z-%d-%d-%d", n, c, i)
					_, err := s.Commit(ctx, request(id), putZone(id))
					switch {
					case err == nil, errors.Is(err, ErrRepeated):
						mu.Lock()
						acked[id] = true
						mu.Unlock()
						i++
					case errors.Is(err, ErrNotLeading):
						time.Sleep(time.Millisecond)
					default:
						t.Errorf("commit %s: %v", id, err)
						return
					}
				}
			})
		}
		wg.Go(func() { callers.Wait(); cancel() })
	}
	wg.Wait()
	v := b.store(ctx, b.connect()).View()
	for id := range acked {
		if v.Get(resource.KindZone, id) == nil {
			t.Errorf("%s was acknowledged and is missing", id)
		}
	}
	if n := len(slices.Collect(v.All(resource.KindZone))); n != 240 {
		t.Errorf("there are %d zones, want 240", n)
	}
}

func TestFollow(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	lead(ctx, t, s)
	standby := b.store(ctx, b.connect())
	fctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- standby.Follow(fctx) }()
	commit(ctx, t, s, "world", benchWorld)
	for i := range 50 {
		commit(ctx, t, s, fmt.Sprint(i), func(tx resource.Tx) error {
			vm := benchVM(tx)
			return errors.Join(tx.Put(vm), tx.Put(benchNIC(tx, vm.ID, uint32(i))))
		})
	}
	// An address moves from one NIC to another within one transaction.
	commit(ctx, t, s, "swap", func(tx resource.Tx) error {
		all := slices.Collect(resource.All[*resource.NIC](tx))
		a, b := resource.Copy(all[0]), resource.Copy(all[1])
		ip := a.IP
		a.IP = netip.Addr{}
		if err := tx.Put(a); err != nil {
			return err
		}
		b.IP = ip
		return tx.Put(b)
	})
	if err := standby.Await(ctx, func(r resource.Reader) bool { return r.Seq() == s.Seq() }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(dump(t, s.View()), dump(t, standby.View())); diff != "" {
		t.Errorf("stand-by (-leader +stand-by):\n%s", diff)
	}
	if err := standby.Lead(ctx); !errors.Is(err, errBusy) {
		t.Errorf("lead while following: %v", err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("follow ends with %v", err)
	}
}

func TestDryRun(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	before, after, err := s.DryRun(ctx, request("dry"), putZone("z"))
	if err != nil {
		t.Fatal(err)
	}
	if before.Get(resource.KindZone, "z") != nil || after.Get(resource.KindZone, "z") == nil || s.View().Get(resource.KindZone, "z") != nil {
		t.Error("the states before and after a dry run are not as they should be")
	}
	dump(t, after)
	if _, _, err := s.DryRun(ctx, request("dry"), func(resource.Tx) error { return errors.New("no") }); err == nil {
		t.Error("a dry run of what is refused succeeds")
	}
}

// A function that runs again sees the same time and draws the same numbers.
func TestTransactionsRepeatThemselves(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	type draw struct {
		now time.Time
		id  string
		n   uint64
	}
	c := &call{request: request("r"), key: keyOf("r"), reply: make(chan result, 1), seed: [32]byte{1}}
	var draws []draw
	c.fn = func(tx resource.Tx) error {
		draws = append(draws, draw{tx.Now(), tx.NewID(), tx.Uint64()})
		return tx.Put(zone("z"))
	}
	for range 2 {
		v := &committer{s: s, done: make(chan appended, 1)}
		v.open = v.newGroup(s.current.Load())
		v.run(c)
		v.open.txn.Abort()
	}
	if len(draws) != 2 || draws[0] != draws[1] {
		t.Errorf("two runs drew %v", draws)
	}
	if !subjects.ValidToken(draws[0].id) || len(draws[0].id) != 36 || draws[0].id[14] != '4' {
		t.Errorf("%q is not a random UUID", draws[0].id)
	}
}

// The journal refuses a group while the next one already stands on it: the one is told, the other runs again.
func TestRefusedGroupIsRolledBack(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	js := b.connect()
	cfg := journal.Config()
	cfg.MaxMsgs = 3
	if _, err := js.UpdateStream(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	s := b.store(ctx, js)
	lead(ctx, t, s)
	var wg sync.WaitGroup
	var mu sync.Mutex
	stored := map[string]bool{}
	for c := range 16 {
		wg.Go(func() {
			for i := range 10 {
				id := fmt.Sprintf("z-%d-%d", c, i)
				_, err := s.Commit(ctx, request(id), putZone(id))
				if err != nil && !isCode(err, resource.CodeInternal) {
					t.Errorf("%s: %v", id, err)
				}
				mu.Lock()
				stored[id] = err == nil
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if s.Seq() != 3 || !s.Leading() {
		t.Errorf("the store is at %d, leading: %v", s.Seq(), s.Leading())
	}
	cfg.MaxMsgs = -1
	if _, err := js.UpdateStream(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	commit(ctx, t, s, "room", putZone("room"))
	v := b.store(ctx, b.connect()).View()
	for id, ok := range stored {
		if there := v.Get(resource.KindZone, id) != nil; there != ok {
			t.Errorf("%s: acknowledged %v, stored %v", id, ok, there)
		}
	}
}

func TestGroupsKeepTheirLimit(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	js := b.connect()
	s := b.store(ctx, js)
	lead(ctx, t, s)
	var wg sync.WaitGroup
	for c := range 40 {
		wg.Go(func() {
			id := fmt.Sprintf("r%d", c)
			if _, err := s.Commit(ctx, request(id), func(tx resource.Tx) error {
				for i := range 25 {
					z := zone(fmt.Sprintf("z-%d-%d", c, i))
					z.Description = strings.Repeat("x", 2000)
					if err := tx.Put(z); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		})
	}
	wg.Wait()
	if err := s.journal.Replay(ctx, 1, func(m journal.Message) error {
		if m.Size > journal.MaxGroup+1024 {
			t.Errorf("message %d has %d bytes", m.Seq, m.Size)
		}
		for _, e := range m.Group.Entries {
			for _, c := range e.Changes {
				var z resource.Zone
				if err := json.Unmarshal(c.Value, &z); err != nil || z.Rev != m.Seq {
					t.Errorf("%s in message %d has revision %d (%v)", c.ID, m.Seq, z.Rev, err)
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n := len(slices.Collect(s.View().All(resource.KindZone))); n != 1000 {
		t.Errorf("there are %d zones, want 1000", n)
	}
	dump(t, s.View())
}

func TestCommitGivesUp(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	lead(ctx, t, s)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Commit(gone, request("gone"), putZone("gone")); err == nil {
		// The queue was quicker: then it must be there.
		if s.View().Get(resource.KindZone, "gone") == nil {
			t.Error("acknowledged and not there")
		}
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	b.stop()
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := s.Commit(short, request("open"), putZone("open")); !errors.Is(err, errOutcomeOpen) {
		t.Errorf("commit without a server: %v, want an open outcome", err)
	}
	if s.View().Get(resource.KindZone, "open") != nil {
		t.Error("what is not durable is visible")
	}
	b.start()
	// The same request finds out, and is not done twice.
	if _, err := s.Commit(ctx, request("open"), putZone("open")); err != nil && !errors.Is(err, ErrRepeated) {
		t.Errorf("repeat: %v", err)
	}
	if s.View().Get(resource.KindZone, "open") == nil {
		t.Error("it is not there")
	}
}

// The server is killed at random moments, and with it the store: whatever was acknowledged is there after that, and every
// transaction is there as a whole or not at all.
func TestCrashes(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	acked := map[string]bool{}
	n := 0
	for round := range 5 {
		s := b.store(ctx, b.connect())
		m := lead(ctx, t, s)
		var mu sync.Mutex
		var wg sync.WaitGroup
		cctx, cancel := context.WithCancel(ctx)
		for c := range 8 {
			wg.Go(func() {
				for i := 0; cctx.Err() == nil; i++ {
					id := fmt.Sprintf("p-%d-%d-%d", round, c, i)
					_, err := s.Commit(cctx, request(id), func(tx resource.Tx) error {
						return errors.Join(tx.Put(zone(id)), tx.Put(&resource.Cluster{Meta: resource.Meta{ID: id, Name: id}, ZoneID: id, State: resource.Enabled}))
					})
					mu.Lock()
					acked[id] = err == nil
					n++
					mu.Unlock()
				}
			})
		}
		if err := s.Await(ctx, func(r resource.Reader) bool { return r.Seq() >= uint64(3+round*11) }); err != nil {
			t.Fatal(err)
		}
		if round%2 == 0 {
			b.stop()
			cancel()
			m.stop()
		} else {
			cancel()
			m.stop()
			b.stop()
		}
		wg.Wait()
		m.end()
		b.start()
		v := b.store(ctx, b.connect()).View()
		for id, ok := range acked {
			z, c := v.Get(resource.KindZone, id), v.Get(resource.KindCluster, id)
			if (z == nil) != (c == nil) {
				t.Errorf("%s is there by half: %v, %v", id, z, c)
			}
			if ok && z == nil {
				t.Errorf("%s was acknowledged and is missing", id)
			}
		}
		dump(t, v)
	}
	t.Logf("%d transactions in %d rounds", n, 5)
}
