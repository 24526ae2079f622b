package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"

	"shoal/controller/access"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/store"
)

// plannedCall is a call of a plan, ready to be run.
type plannedCall struct {
	op   *Operation
	body []byte
}

// planned finds the operations of a plan's calls and refuses what can't be in one.
func (s *Service) planned(calls []resource.PlannedCall) ([]plannedCall, error) {
	out := make([]plannedCall, len(calls))
	for i, c := range calls {
		at := fmt.Sprintf("changes[%d]", i)
		kind, verb, _ := strings.Cut(c.Op, ".")
		op := s.registry.Find(resource.Kind(kind), verb)
		switch {
		case op == nil:
			return nil, (&resource.Error{Code: resource.CodeNotFound, Field: at + ".op", Message: "there is no operation " + c.Op}).WithRemedy("see shoalctl schema get")
		case op.write == nil:
			return nil, resource.Invalid(at+".op", "%s can't be part of a plan: it changes no resources", c.Op)
		case op.after != nil, op.prepare != nil:
			return nil, resource.Invalid(at+".op", "%s can't be part of a plan: it makes or takes a credential, which is for its caller only", c.Op)
		}
		params, common, err := op.Decode(c.Params)
		if err != nil {
			return nil, inChange(err, at, c.Op)
		}
		if common != (Common{}) {
			return nil, resource.Invalid(at, "request and dry_run are the plan's, not a change's")
		}
		for _, p := range op.Params {
			if hasSecret(p) && p.IsSet(params) {
				return nil, resource.Invalid(at+"."+p.Name, "is secret, and plans are kept").WithRemedy("make this call by itself")
			}
		}
		out[i] = plannedCall{op, c.Params}
	}
	return out, nil
}

// recorded is a request's body as it is kept: without secrets, also those in the changes of a plan, which will be refused.
func (s *Service) recorded(op *Operation, body []byte) json.RawMessage {
	b := mask(body, op.allParams())
	if op.params != reflect.TypeFor[planParams]() {
		return b
	}
	var request map[string]json.RawMessage
	var changes []map[string]json.RawMessage
	if json.Unmarshal(b, &request) != nil || json.Unmarshal(request["changes"], &changes) != nil {
		return nil
	}
	for _, c := range changes {
		var name string
		if json.Unmarshal(c["op"], &name) != nil {
			return nil
		}
		kind, verb, _ := strings.Cut(name, ".")
		known := s.registry.Find(resource.Kind(kind), verb)
		if known == nil {
			delete(c, "params")
		} else if c["params"] != nil {
			c["params"] = mask(c["params"], known.allParams())
		}
	}
	var err error
	if request["changes"], err = json.Marshal(changes); err != nil {
		return nil
	}
	if b, err = json.Marshal(request); err != nil {
		return nil
	}
	return b
}

// inChange says which change of a plan an error is about.
func inChange(err error, at, op string) error {
	var e *resource.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s (%s): %w", at, op, err)
	}
	c := *e
	if c.Field = at; e.Field != "" {
		c.Field += "." + e.Field
	}
	c.Message = op + ": " + c.Message
	return &c
}

// plannedTx is a transaction whose ids and choices come from a plan's seed, and that notes what is changed.
type plannedTx struct {
	resource.Tx
	random     *mrand.ChaCha8
	touched    map[resource.Ref]*touch
	order      []resource.Ref
	placements []resource.Placement
}

// touch is a resource before and after; nil for absent.
type touch struct{ old, now resource.Resource }

func newPlannedTx(tx resource.Tx, seed []byte) (*plannedTx, error) {
	if len(seed) != 32 {
		return nil, fmt.Errorf("the plan's seed has %d bytes instead of 32", len(seed))
	}
	return &plannedTx{Tx: tx, random: mrand.NewChaCha8([32]byte(seed)), touched: map[resource.Ref]*touch{}}, nil
}

// Uint64 implements resource.Tx.
func (t *plannedTx) Uint64() uint64 { return t.random.Uint64() }

// NewID implements resource.Tx.
func (t *plannedTx) NewID() string { return store.NewID(t.random.Uint64) }

// Placed implements plan.Placer.
func (t *plannedTx) Placed(p resource.Placement) {
	t.placements = slices.DeleteFunc(t.placements, func(o resource.Placement) bool { return o.VMID == p.VMID })
	t.placements = append(t.placements, p)
}

// Put implements resource.Tx.
func (t *plannedTx) Put(r resource.Resource) error {
	kind, id := r.Kind(), r.Base().ID
	old := t.Get(kind, id)
	if err := t.Tx.Put(r); err != nil {
		return err
	}
	t.note(kind, id, old, r)
	return nil
}

// Delete implements resource.Tx.
func (t *plannedTx) Delete(kind resource.Kind, id string) error {
	old := t.Get(kind, id)
	if err := t.Tx.Delete(kind, id); err != nil {
		return err
	}
	t.note(kind, id, old, nil)
	return nil
}

// note takes a change. Tasks narrate, and plans are told of elsewhere: neither is what a plan is about.
func (t *plannedTx) note(kind resource.Kind, id string, old, now resource.Resource) {
	if kind == resource.KindTask || kind == resource.KindPlan {
		return
	}
	ref := resource.Ref{Kind: kind, ID: id}
	if at := t.touched[ref]; at != nil {
		at.now = now
		return
	}
	t.touched[ref] = &touch{old, now}
	t.order = append(t.order, ref)
}

// changes are the resources that differ from before.
func (t *plannedTx) changes() ([]resource.PlannedResource, error) {
	var out []resource.PlannedResource
	for _, ref := range t.order {
		at := t.touched[ref]
		was, err := sum(at.old)
		if err != nil {
			return nil, err
		}
		is, err := sum(at.now)
		if err != nil {
			return nil, err
		}
		if was == is {
			continue
		}
		p := resource.PlannedResource{Kind: ref.Kind, ID: ref.ID, Sum: is, Change: resource.PlannedUpdate}
		if at.old != nil {
			p.Name, p.Rev = at.old.Base().Name, at.old.Base().Rev
		} else {
			p.Change = resource.PlannedCreate
		}
		if at.now != nil {
			p.Name = at.now.Base().Name
		} else {
			p.Change = resource.PlannedDelete
		}
		out = append(out, p)
	}
	return out, nil
}

// sum stands for what a resource is: without when and by whom it was made so. "" stands for absent.
func sum(r resource.Resource) (string, error) {
	if r == nil {
		return "", nil
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode %s %s: %w", r.Kind(), r.Base().ID, err)
	}
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		return "", fmt.Errorf("read %s %s: %w", r.Kind(), r.Base().ID, err)
	}
	for _, name := range []string{"created", "updated", "rev", "cause", "owner"} {
		delete(m, name)
	}
	timeless(m)
	// Maps are encoded in order.
	if raw, err = json.Marshal(m); err != nil {
		return "", fmt.Errorf("encode %s %s: %w", r.Kind(), r.Base().ID, err)
	}
	h := sha256.Sum256(raw)
	return hex.EncodeToString(h[:12]), nil
}

// timeless makes all moments in a value the same.
func timeless(v any) any {
	switch x := v.(type) {
	case string:
		if _, err := time.Parse(time.RFC3339Nano, x); err == nil {
			return "a moment"
		}
	case map[string]any:
		for k, e := range x {
			x[k] = timeless(e)
		}
	case []any:
		for i, e := range x {
			x[i] = timeless(e)
		}
	}
	return v
}

// batchOutcome is what the calls of a plan have done.
type batchOutcome struct {
	Outcome
	// tasks are what the call's tasks are about.
	tasks []resource.Ref
}

// runAll runs the calls of a plan one after the other in one transaction: a later one finds what an earlier one has made.
func (s *Service) runAll(tx *plannedTx, caller Caller, calls []plannedCall) (batchOutcome, error) {
	var all batchOutcome
	for i, c := range calls {
		out, _, err := s.one(tx, c.op, caller, c.body, nil)
		if err != nil {
			return all, inChange(err, fmt.Sprintf("changes[%d]", i), c.op.Name())
		}
		about := []resource.Ref{out.Subject}
		if len(out.Resources) > 0 {
			about = nil
		}
		for _, r := range out.Resources {
			ref := resource.Ref{Kind: r.Kind(), ID: r.Base().ID}
			about = append(about, ref)
			if !slices.ContainsFunc(all.Resources, func(o resource.Resource) bool { return o.Kind() == ref.Kind && o.Base().ID == ref.ID }) {
				all.Resources = append(all.Resources, r)
			}
		}
		all.Deleted = append(all.Deleted, out.Deleted...)
		for _, ref := range about {
			if c.op.Task && !slices.Contains(all.tasks, ref) {
				all.tasks = append(all.tasks, ref)
			}
		}
	}
	all.Resources = slices.DeleteFunc(all.Resources, func(r resource.Resource) bool { return tx.Get(r.Kind(), r.Base().ID) == nil })
	return all, nil
}

// planCreate tries changes and keeps what they would do.
func (s *Service) planCreate(ctx context.Context, in served, p *planParams) (*Reply, error) {
	req, dry := in.req, in.dry
	if old, ok := s.planOf(req.ID); ok {
		return s.planReply(&Reply{Request: req.ID, Repeated: true, Seq: old.Rev}, old, in)
	}
	made := &resource.Plan{State: resource.PlanOpen, Seed: make([]byte, 32)}
	for _, c := range p.Changes {
		made.Changes = append(made.Changes, resource.PlannedCall{Op: c.Op, Params: json.RawMessage(c.Params)})
	}
	if made.Name = p.Name; made.Name == "" {
		made.Name = made.Changes[0].Op
		if n := len(made.Changes) - 1; n > 0 {
			made.Name += fmt.Sprintf(" and %d more", n)
		}
	}
	made.Description, made.Owner = p.Description, req.Owner()
	calls, err := s.planned(made.Changes)
	if err != nil {
		return nil, err
	}
	if _, err := rand.Read(made.Seed); err != nil {
		return nil, fmt.Errorf("read randomness: %w", err)
	}
	var trial *plannedTx
	before, after, err := s.cfg.Store.DryRun(ctx, req, func(tx resource.Tx) error {
		if trial, err = newPlannedTx(tx, made.Seed); err != nil {
			return err
		}
		_, err := s.runAll(trial, in.caller, calls)
		return err
	})
	if err != nil {
		return nil, err
	}
	if made.Touched, err = trial.changes(); err != nil {
		return nil, err
	}
	made.BaseSeq = before.Seq()
	reply := &Reply{Request: req.ID, DryRun: dry}
	// Documents and places show what hosts and networks are made of.
	if in.who.Everything() {
		made.Placements = trial.placements
		if reply.Documents, err = plan.DocumentDiff(before, after); err != nil {
			return nil, fmt.Errorf("compare documents: %w", err)
		}
		made.Hosts = plannedHosts(reply.Documents)
	}
	if len(made.Touched) > 0 && !dry {
		seq, err := s.cfg.Store.Commit(ctx, req, func(tx resource.Tx) error {
			if err := s.still(tx, in); err != nil {
				return err
			}
			c := resource.Copy(made)
			c.ID = tx.NewID()
			if err := tx.Put(c); err != nil {
				return err
			}
			made = c
			answered(tx, Outcome{Resources: []resource.Resource{c}}, nil)
			return nil
		})
		if err != nil && !errors.Is(err, store.ErrRepeated) {
			return nil, err
		}
		reply.Seq = seq
	}
	return s.planReply(reply, made, in)
}

// planOf is the plan that a request has made.
func (s *Service) planOf(request string) (*resource.Plan, bool) {
	for p := range resource.All[*resource.Plan](s.cfg.Store.View()) {
		if p.Cause == request && p.State == resource.PlanOpen {
			return p, true
		}
	}
	return nil, false
}

func (s *Service) planReply(reply *Reply, p *resource.Plan, in served) (*Reply, error) {
	full := s.cfg.Store.View()
	v, err := view(s.env(full, in.who), access.View(full, in.who), p)
	if err != nil {
		return nil, err
	}
	reply.Resource, reply.main = v, p
	if b, err := json.Marshal(reply.Documents); err == nil && len(b) > maxAnswer/2 {
		// What differs is more than an answer holds; what is added, changed and removed is in the plan.
		reply.Documents = slices.Clone(reply.Documents)
		for i := range reply.Documents {
			reply.Documents[i].Items = nil
		}
	}
	return reply, nil
}

func plannedHosts(documents []plan.HostDiff) []resource.PlannedHost {
	var out []resource.PlannedHost
	for _, d := range documents {
		h := resource.PlannedHost{HostID: d.HostID, Host: d.Host, Stops: d.Stops, Restarts: d.Restarts, Starts: d.Starts, Erases: d.Erases}
		for _, it := range d.Items {
			switch it.Change {
			case plan.ItemAdded:
				h.Added = append(h.Added, it.Ref)
			case plan.ItemChanged:
				h.Changed = append(h.Changed, it.Ref)
			case plan.ItemRemoved:
				h.Removed = append(h.Removed, it.Ref)
			}
		}
		out = append(out, h)
	}
	return out
}

// planApply does what a plan says, just so, or refuses.
func (s *Service) planApply(ctx context.Context, in served, p *getParams) (*Reply, error) {
	req, dry := in.req, in.dry
	var out batchOutcome
	var tasks []string
	run := func(tx resource.Tx) error {
		out, tasks = batchOutcome{}, nil
		if err := s.still(tx, in); err != nil {
			return err
		}
		pl, err := resource.Get[*resource.Plan](tx, p.ID)
		if err != nil {
			return err
		}
		if pl.State != resource.PlanOpen {
			return resource.Conflict("plan", "plan %s was applied by request %s at %s", pl.Name, pl.AppliedBy, pl.AppliedAt.Format(time.RFC3339)).
				WithRemedy("make a new one: shoalctl plan -f FILE")
		}
		if err := moved(tx, pl); err != nil {
			return err
		}
		calls, err := s.planned(pl.Changes)
		if err != nil {
			return err
		}
		again, err := newPlannedTx(tx, pl.Seed)
		if err != nil {
			return err
		}
		if out, err = s.runAll(again, in.caller, calls); err != nil {
			return err
		}
		if err := otherwise(pl, again); err != nil {
			return err
		}
		done := resource.Copy(pl)
		done.State, done.AppliedBy, done.AppliedAt = resource.PlanApplied, req.ID, tx.Now()
		if err := tx.Put(done); err != nil {
			return err
		}
		if tasks, err = tasksAbout(tx, out.tasks); err == nil {
			answered(tx, out.Outcome, tasks)
		}
		return err
	}
	reply := &Reply{Request: req.ID, DryRun: dry}
	var r resource.Reader
	if dry {
		before, after, err := s.cfg.Store.DryRun(ctx, req, run)
		if err != nil {
			return nil, err
		}
		if in.who.Everything() {
			if reply.Documents, err = plan.DocumentDiff(before, after); err != nil {
				return nil, fmt.Errorf("compare documents: %w", err)
			}
		}
		r, tasks = after, nil
	} else {
		seq, err := s.cfg.Store.Commit(ctx, req, run)
		r = s.cfg.Store.View()
		switch {
		case errors.Is(err, store.ErrRepeated):
			out.Resources, tasks = appliedBy(access.View(r, in.who), req.ID)
			reply.Repeated = true
		case err != nil:
			return nil, err
		}
		reply.Seq = seq
	}
	if _, err := s.finish(reply, r, in.who, out.Outcome, tasks); err != nil {
		return nil, err
	}
	return reply, nil
}

// moved names the resources of a plan that are not as they were when it was made.
func moved(r resource.Reader, p *resource.Plan) error {
	var reasons []resource.Reason
	for _, t := range p.Touched {
		now := r.Get(t.Kind, t.ID)
		var why string
		switch {
		case t.Change == resource.PlannedCreate:
			continue
		case now == nil:
			why = "is gone"
		case now.Base().Rev != t.Rev:
			why = fmt.Sprintf("was changed at journal sequence %d by request %s; the plan knows it as of %d", now.Base().Rev, now.Base().Cause, t.Rev)
		default:
			continue
		}
		reasons = append(reasons, resource.Reason{Kind: t.Kind, ID: t.ID, Name: t.Name, Why: why})
	}
	return baseMoved(p, reasons, "what it would change has changed since")
}

// otherwise says where applying a plan has another outcome than it had when it was made.
func otherwise(p *resource.Plan, again *plannedTx) error {
	now, err := again.changes()
	if err != nil {
		return err
	}
	var reasons []resource.Reason
	for _, t := range p.Touched {
		i := slices.IndexFunc(now, func(n resource.PlannedResource) bool { return n.Kind == t.Kind && n.ID == t.ID })
		var why string
		switch {
		case i < 0:
			why = fmt.Sprintf("the plan has a %s of it, which there would not be", t.Change)
		case now[i].Change != t.Change || now[i].Sum != t.Sum:
			why = "would become something else than planned"
			was := slices.IndexFunc(p.Placements, func(x resource.Placement) bool { return x.VMID == t.ID })
			is := slices.IndexFunc(again.placements, func(x resource.Placement) bool { return x.VMID == t.ID })
			if was >= 0 && is >= 0 && p.Placements[was].HostID != again.placements[is].HostID {
				why = fmt.Sprintf("would be put on host %s, not on %s", again.placements[is].Host, p.Placements[was].Host)
			}
		default:
			continue
		}
		reasons = append(reasons, resource.Reason{Kind: t.Kind, ID: t.ID, Name: t.Name, Why: why})
	}
	for _, n := range now {
		if !slices.ContainsFunc(p.Touched, func(t resource.PlannedResource) bool { return n.Kind == t.Kind && n.ID == t.ID }) {
			reasons = append(reasons, resource.Reason{Kind: n.Kind, ID: n.ID, Name: n.Name, Why: fmt.Sprintf("the plan does not have the %s of it", n.Change)})
		}
	}
	return baseMoved(p, reasons, "it would not do what was planned")
}

// maxMoved is how many of the resources that have moved are named.
const maxMoved = 16

func baseMoved(p *resource.Plan, reasons []resource.Reason, what string) error {
	if len(reasons) == 0 {
		return nil
	}
	e := resource.Conflict("plan", "the base of plan %s has moved: %s", p.Name, what).WithRemedy("nothing was changed; make a new one: shoalctl plan -f FILE")
	e.Reasons = reasons[:min(len(reasons), maxMoved)]
	return e
}

// tasksAbout makes a task for each of these resources, beside the one that the call may have already.
func tasksAbout(tx resource.Tx, about []resource.Ref) ([]string, error) {
	if len(about) == 0 {
		return nil, nil
	}
	first, err := plan.NewTask(tx, about[0].Kind, about[0].ID)
	if err != nil || first == nil {
		return nil, err
	}
	ids := []string{first.ID}
	for _, ref := range about {
		if ref.Kind == first.ResourceKind && ref.ID == first.ResourceID {
			continue
		}
		id, err := furtherTask(tx, ref, len(ids))
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// appliedBy is what a request has applied, as far as it is still there.
func appliedBy(r resource.Reader, request string) ([]resource.Resource, []string) {
	out, tasks := repeated(r, &Operation{}, request)
	for p := range resource.All[*resource.Plan](r) {
		if p.AppliedBy != request {
			continue
		}
		out.Resources = nil
		for _, t := range p.Touched {
			if res := r.Get(t.Kind, t.ID); res != nil {
				out.Resources = append(out.Resources, res)
			}
		}
	}
	return out.Resources, tasks
}
