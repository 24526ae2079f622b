package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/micro"
	"github.com/rs/zerolog"

	"shoal/controller/api"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/site"
	"shoal/controller/store"
	"shoal/desired"
	"shoal/subjects"
)

const (
	// aheadEvery is how often held hosts are looked at, aheadCall bounds one question to an agent, aheadParallel how many are asked
	// at once; aheadAgain is how long an agent that did not answer is left alone.
	aheadEvery    = 300 * time.Millisecond
	aheadCall     = 5 * time.Second
	aheadParallel = 8
	aheadAgain    = 10 * time.Second
)

// roster is which hosts are connected, those that the state does not know among them.
type roster struct {
	mu sync.Mutex
	on map[string]time.Time
}

func (r *roster) set(host string, connected bool, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.on == nil {
		r.on = map[string]time.Time{}
	}
	if connected {
		r.on[host] = at
	} else {
		delete(r.on, host)
	}
}

func (r *roster) hosts() map[string]time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.on)
}

// connected takes note of a host's agent.
func (c *controller) connected(host string, on bool, at time.Time) {
	c.roster.set(host, on, at)
	c.store.SetConnected(host, on, at)
}

// told is what a host was told, as its agent says.
type told struct {
	doc desired.Document
	err error
	at  time.Time
}

// aheads looks after hosts that are held, and those that the state does not know: after a restore, and after everything was
// lost. It works in the leader.
type aheads struct {
	store  *store.Store
	site   *site.Site
	roster *roster
	asked  <-chan struct{}
	log    zerolog.Logger

	mu   sync.Mutex
	told map[string]told
}

// run works until ctx ends.
func (a *aheads) run(ctx context.Context) error {
	tick := time.NewTicker(aheadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			a.ask(ctx)
			a.release(ctx)
		case <-a.asked:
			a.ask(ctx)
			a.tasks(ctx)
		}
	}
}

// hosts are those that are looked after: held ones, and connected ones that nobody knows.
func (a *aheads) hosts(r resource.Reader) (held []*resource.Host, unknown []string) {
	for h := range resource.All[*resource.Host](r) {
		if h.Hold != nil {
			held = append(held, h)
		}
	}
	for id := range a.roster.hosts() {
		if r.Get(resource.KindHost, id) == nil {
			unknown = append(unknown, id)
		}
	}
	slices.Sort(unknown)
	return held, unknown
}

// ask gets the documents of hosts whose documents are not known yet, or have changed.
func (a *aheads) ask(ctx context.Context) {
	r := a.store.View()
	held, unknown := a.hosts(r)
	want := unknown
	for _, h := range held {
		want = append(want, h.ID)
	}
	a.mu.Lock()
	for id := range a.told {
		if !slices.Contains(want, id) {
			delete(a.told, id)
		}
	}
	a.mu.Unlock()
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, aheadParallel)
	for _, id := range want {
		ob := r.Observed().Host(id)
		if !ob.Connected {
			continue
		}
		if t, ok := a.known(id); ok && (t.err == nil && (!ob.Reported || t.doc.Head.Gen == ob.Facts.Gen) || time.Since(t.at) < aheadAgain && t.err != nil) {
			continue
		}
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			a.askOne(ctx, id, ob.Reported && ob.Facts.Gen == 0)
		})
	}
}

// askOne asks one host, and takes note of its answer. A host that was never told anything has nothing to hand over.
func (a *aheads) askOne(ctx context.Context, id string, never bool) {
	t := told{at: time.Now()}
	if t.doc, t.err = a.fetch(ctx, id); t.err != nil && never {
		t.doc, t.err = desired.Document{Head: desired.Head{Host: id}}, nil
	}
	if ctx.Err() != nil {
		return
	}
	if t.err != nil {
		a.log.Warn().Err(t.err).Str("host", id).Msg("host did not hand over what it was told")
	} else {
		a.log.Info().Str("host", id).Uint64("gen", t.doc.Head.Gen).Int("items", len(t.doc.Items)).Msg("host handed over what it was told")
	}
	a.mu.Lock()
	a.told[id] = t
	a.mu.Unlock()
}

func (a *aheads) known(host string) (told, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.told[host]
	return t, ok
}

// gen is the generation of what a host was told, 0 where it is not known.
func (a *aheads) gen(host string) uint64 {
	t, _ := a.known(host)
	return t.doc.Head.Gen
}

// fetch asks an agent for the document in its ledger.
func (a *aheads) fetch(ctx context.Context, host string) (desired.Document, error) {
	fail := func(err error) (desired.Document, error) {
		return desired.Document{}, fmt.Errorf("ask host %s for its document: %w", host, err)
	}
	var all desired.Assembly
	for {
		body, err := json.Marshal(all.Next())
		if err != nil {
			return fail(err)
		}
		call, cancel := context.WithTimeout(ctx, aheadCall)
		m, err := a.site.Conn().RequestWithContext(call, subjects.Agent(host, subjects.AgentVerbDocument), body)
		cancel()
		if err != nil {
			return fail(err)
		}
		if text := m.Header.Get(micro.ErrorHeader); text != "" {
			return fail(errors.New(text))
		}
		var p desired.DocumentPage
		if err := json.Unmarshal(m.Data, &p); err != nil {
			return fail(err)
		}
		doc, whole, err := all.Add(p)
		if err != nil {
			return fail(err)
		}
		if whole {
			if doc.Head.Host != host {
				return fail(fmt.Errorf("it hands over host %q's", doc.Head.Host))
			}
			return doc, nil
		}
	}
}

// release ends the holds of hosts that turn out to be no newer than the journal.
func (a *aheads) release(ctx context.Context) {
	r := a.store.View()
	compare := plan.NewRenderer(r)
	for h := range resource.All[*resource.Host](r) {
		if h.Hold == nil || !r.Observed().Host(h.ID).Connected {
			continue
		}
		t, ok := a.known(h.ID)
		if !ok || t.err != nil || t.doc.Head.Gen > h.Hold.Seq || r.Observed().PublishedGen(h.ID) > r.Seq() {
			continue
		}
		d, err := compare.Ledger(h.ID, t.doc)
		if err != nil || !d.Same() || startsAny(r, d) {
			continue
		}
		if err := a.commit(ctx, "ahead.release", func(tx resource.Tx) error { return plan.Release(tx, h.ID) }); err != nil {
			if ctx.Err() == nil {
				a.log.Warn().Err(err).Str("host", h.ID).Msg("host not released")
			}
			return
		}
		a.log.Info().Str("host", h.ID).Uint64("gen", t.doc.Head.Gen).Uint64("seq", h.Hold.Seq).Msg("host is no newer than the journal; it is told on")
	}
}

// startsAny reports whether the state wants a VM on a host to run that the host does not have: it may have moved since.
func startsAny(r resource.Reader, d plan.Ahead) bool {
	return slices.ContainsFunc(d.OnlyState, func(k plan.Known) bool {
		vm, ok := resource.Find[*resource.VM](r, k.ID)
		return ok && vm.Power != desired.PowerOff
	})
}

func (a *aheads) commit(ctx context.Context, op string, fn func(tx resource.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := a.store.Commit(ctx, resource.Request{Caller: resource.CallerController, Op: op}, fn)
	return err
}

// tasks does what was decided about hosts.
func (a *aheads) tasks(ctx context.Context) {
	for t := range resource.All[*resource.Task](a.store.View()) {
		if t.State != resource.TaskRunning || t.ResourceKind != resource.KindAhead {
			continue
		}
		err := a.decide(ctx, t)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			a.log.Warn().Err(err).Str("op", t.Op).Str("host", t.ResourceID).Msg("decision about hosts not carried out")
		}
		if err := endTask(ctx, a.store, t.Op, t.ID, err); err != nil && ctx.Err() == nil {
			a.log.Warn().Err(err).Msg("end of a task not recorded")
		}
	}
}

// decide adopts or overrides one host or all of them. All that are decided about together are taken over before the first of
// them is told anything: what one host is told depends on what the others have.
func (a *aheads) decide(ctx context.Context, t *resource.Task) error {
	force := t.Op == api.OpOverrideForce
	override := t.Op == api.OpOverride || force
	var chosen []*resource.Host
	var missing []resource.Reason
	if !override {
		var err error
		if missing, err = a.enter(ctx, t); err != nil {
			return err
		}
	}
	r := a.store.View()
	held, _ := a.hosts(r)
	for _, h := range held {
		if t.ResourceID != api.AllHosts && t.ResourceID != h.ID {
			continue
		}
		known, ok := a.known(h.ID)
		why := ""
		switch {
		case !r.Observed().Host(h.ID).Connected:
			why = "it is not connected, so that nobody knows what it has"
		case !ok:
			why = "it has not been asked yet what it has"
		case known.err != nil:
			why = known.err.Error()
		}
		if why != "" {
			missing = append(missing, resource.Reason{Kind: resource.KindHost, ID: h.ID, Name: h.Name, Why: why})
			continue
		}
		chosen = append(chosen, h)
	}
	if override && !force {
		missing = append(missing, a.conflicts(r, held, chosen)...)
		chosen = slices.DeleteFunc(chosen, func(h *resource.Host) bool {
			return slices.ContainsFunc(missing, func(m resource.Reason) bool { return m.ID == h.ID })
		})
	}
	// Of what hosts share, the word of the one that was told last counts.
	slices.SortStableFunc(chosen, func(x, y *resource.Host) int { return cmp.Compare(a.gen(y.ID), a.gen(x.ID)) })
	for _, h := range chosen {
		known, _ := a.known(h.ID)
		if known.doc.Head.Gen == 0 {
			continue // there is nothing to take over
		}
		ad := plan.Adoption{Host: h.ID, Doc: known.doc, OnlyNew: override}
		for n := range ad.Steps() {
			if err := a.commit(ctx, t.Op, func(tx resource.Tx) error { return ad.Step(tx, n) }); err != nil {
				return fmt.Errorf("host %s: %w", h.Name, err)
			}
		}
	}
	for _, h := range chosen {
		if err := a.commit(ctx, t.Op, func(tx resource.Tx) error { return plan.Release(tx, h.ID) }); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
		a.log.Info().Str("host", h.ID).Str("op", t.Op).Msg("host is told on")
	}
	if len(missing) > 0 || len(chosen) == 0 {
		e := &resource.Error{
			Code: resource.CodeConflict, Field: "host", Message: fmt.Sprintf("%d hosts decided, %d not", len(chosen), len(missing)), Reasons: missing,
			Remedy: "see shoalctl ahead list; hosts that stay held go on as they are",
		}
		if len(missing) == 0 {
			e.Message = "no host is held"
		}
		return e
	}
	return nil
}

// enter adds the hosts that the state does not know and a task wants to be taken over, with the clusters and zones that they say they
// are in. Those that do not say are left out when all are wanted; they are taken over one by one.
func (a *aheads) enter(ctx context.Context, t *resource.Task) (missing []resource.Reason, err error) {
	r := a.store.View()
	_, unknown := a.hosts(r)
	if t.ResourceID != api.AllHosts && r.Get(resource.KindHost, t.ResourceID) == nil && !slices.Contains(unknown, t.ResourceID) {
		return []resource.Reason{{Kind: resource.KindHost, ID: t.ResourceID, Name: t.ResourceID, Why: "the state does not know it, and it is not connected"}}, nil
	}
	slices.SortStableFunc(unknown, func(x, y string) int { return cmp.Compare(a.gen(y), a.gen(x)) })
	for _, id := range unknown {
		if t.ResourceID != api.AllHosts && t.ResourceID != id {
			continue
		}
		known, ok := a.known(id)
		var why string
		switch {
		case !ok:
			why = "it has not been asked yet what it has"
		case known.err != nil:
			why = known.err.Error()
		case !plan.Knows(known.doc):
			why = "it does not say which cluster it was in: see shoalctl ahead list -o yaml for the command that takes it over"
		default:
			if err := a.commit(ctx, t.Op, func(tx resource.Tx) error { return plan.AdoptHost(tx, known.doc, a.site.HostKey(id)) }); err != nil {
				return nil, fmt.Errorf("host %s: %w", id, err)
			}
			continue
		}
		missing = append(missing, resource.Reason{Kind: resource.KindHost, ID: id, Name: id, Why: why})
	}
	return missing, nil
}

// conflicts are the hosts that must not be told what the state says, since a guest might then run twice: the state puts
// a VM there that another held host has, or may have.
func (a *aheads) conflicts(r resource.Reader, held, chosen []*resource.Host) []resource.Reason {
	var out []resource.Reason
	compare := plan.NewRenderer(r)
	for _, h := range chosen {
		known, _ := a.known(h.ID)
		d, err := compare.Ledger(h.ID, known.doc)
		if err != nil {
			out = append(out, resource.Reason{Kind: resource.KindHost, ID: h.ID, Name: h.Name, Why: err.Error()})
			continue
		}
		if len(d.Elsewhere) > 0 {
			k := d.Elsewhere[0]
			out = append(out, resource.Reason{
				Kind: resource.KindHost, ID: h.ID, Name: h.Name,
				Why: fmt.Sprintf("it has VM %s, which the state puts on host %s: adopt this host", cmp.Or(k.Name, k.ID), k.Host),
			})
			continue
		}
		if !startsAny(r, d) {
			continue
		}
		if why := a.mayRunElsewhere(r, held, h.ID, d); why != "" {
			out = append(out, resource.Reason{Kind: resource.KindHost, ID: h.ID, Name: h.Name, Why: why})
		}
	}
	return out
}

func (a *aheads) mayRunElsewhere(r resource.Reader, held []*resource.Host, host string, d plan.Ahead) string {
	for _, k := range d.OnlyState {
		if vm, ok := resource.Find[*resource.VM](r, k.ID); !ok || vm.Power == desired.PowerOff {
			continue
		}
		for _, other := range held {
			if other.ID == host {
				continue
			}
			t, ok := a.known(other.ID)
			if !ok || t.err != nil {
				return fmt.Sprintf("the state starts VM %s there, and it is not known whether host %s has it: wait for that host, or give --force", k.Name, other.Name)
			}
			if _, has := t.doc.Items[resource.DomainRef(k.ID)]; has {
				return fmt.Sprintf("the state starts VM %s there, which host %s has: adopt that host first", k.Name, other.Name)
			}
		}
	}
	return ""
}

// list is every host that is held or not known, as people see it.
func (a *aheads) list() []api.AheadInfo {
	r := a.store.View()
	held, unknown := a.hosts(r)
	compare := plan.NewRenderer(r)
	var out []api.AheadInfo
	for _, h := range held {
		out = append(out, a.info(r, compare, h.ID, h))
	}
	for _, id := range unknown {
		out = append(out, a.info(r, compare, id, nil))
	}
	slices.SortFunc(out, func(x, y api.AheadInfo) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(x.ID, y.ID))
	})
	return out
}

func (a *aheads) info(r resource.Reader, compare *plan.Renderer, id string, h *resource.Host) api.AheadInfo {
	ob := r.Observed().Host(id)
	i := api.AheadInfo{ID: id, Name: ob.Facts.Inventory.Hostname, Connected: ob.Connected, Gen: ob.Facts.Gen, Key: a.site.HostKey(id)}
	if h != nil {
		i.Known, i.Name, i.Since, i.Seq, i.Why = true, h.Name, h.Hold.Since, h.Hold.Seq, h.Hold.Why
	} else {
		i.Why = "no such host is in the state: it was added after the backup, or everything was lost"
		i.Remedy = fmt.Sprintf("shoalctl ahead adopt %s --cluster CLUSTER --name %s --key %s", id, cmp.Or(i.Name, "NAME"), i.Key)
	}
	t, ok := a.known(id)
	if h == nil && ok && t.err == nil && plan.Knows(t.doc) {
		i.Remedy = "shoalctl ahead adopt " + id
	}
	switch {
	case !ob.Connected:
		i.State = "absent"
	case !ok:
		i.State = "asking"
	case t.err != nil:
		i.State, i.Error = "silent", t.err.Error()
	default:
		i.Gen = t.doc.Head.Gen
		i.State = "ahead"
		d, err := compare.Ledger(id, t.doc)
		if err != nil {
			i.State, i.Error = "unreadable", err.Error()
			return i
		}
		if d.Same() && len(d.Diff.Items) == 0 {
			i.State = "same"
		}
		if gen := max(t.doc.Head.Gen, r.Observed().PublishedGen(id)); gen > r.Seq() {
			i.Error = fmt.Sprintf("it was told generation %d, and the journal is at %d: whatever is decided takes effect only from there on", gen, r.Seq())
			i.Remedy = fmt.Sprintf("restore again with --advance %d", gen)
		}
		i.Compared = &d
		i.OnlyHost, i.OnlyState, i.Elsewhere, i.Differs = len(d.OnlyHost), len(d.OnlyState), len(d.Elsewhere), len(d.Diff.Items)
	}
	return i
}
