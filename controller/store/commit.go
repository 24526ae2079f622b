package store

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-memdb"
	"golang.org/x/sync/errgroup"

	"shoal/controller/journal"
	"shoal/controller/resource"
)

// Limits of the group commit.
const (
	// queueLength is how many callers may wait; more of them wait for a place.
	queueLength = 1024
	// groupEntries is how many transactions are put into one group.
	groupEntries = 1024
	// appendGrace is how long a group on its way to the journal is waited for when the term has ended.
	appendGrace = 2 * time.Second
)

// errNotRun says that a call was given up before its function ran.
var errNotRun = errors.New("given up before it was its turn; nothing was changed")

// errOutcomeOpen says that a call was given up on its way to the journal.
var errOutcomeOpen = errors.New("it is not known whether it was committed: repeat it with the same request id to find out")

// ErrNotLeading says that Commit does not work here now. Such an error is also a *resource.Error with CodeNotLeader.
var ErrNotLeading = errors.New("this controller does not lead")

func notLeader() error { return notLeaderError{} }

type notLeaderError struct{}

func (notLeaderError) Error() string { return ErrNotLeading.Error() }

func (notLeaderError) Is(target error) bool { return target == ErrNotLeading }

func (notLeaderError) As(target any) bool {
	p, ok := target.(**resource.Error)
	if ok {
		*p = &resource.Error{Code: resource.CodeNotLeader, Message: ErrNotLeading.Error(), Remedy: "ask again; the leading controller will answer"}
	}
	return ok
}

// call is one Commit on its way.
type call struct {
	request resource.Request
	key     requestKey
	fn      func(resource.Tx) error
	seed    [32]byte
	now     time.Time // set by the first run
	// restate, instead of fn, gives an entry that says once more what there is; mark, instead of both, ends a round.
	restate func(v *view) (journal.Entry, error)
	mark    *journal.Mark
	// notes are stored as they are, in place of a transaction.
	notes *notes

	mu    sync.Mutex // held while fn runs
	gone  bool       // the caller has left: fn must not run any more
	ran   bool
	reply chan result
}

type result struct {
	seq uint64
	err error
}

// leadership is one term of leading.
type leadership struct {
	queue chan *call
	ended chan struct{}
}

// Commit runs a function on the newest state and returns once its changes are durable and visible. The function may
// run more than once, always with the same time, ids and random numbers, and never again after Commit has
// returned. Its error is returned as it is, and leaves no trace.
//
// A request whose id was committed before is not run: Commit returns its sequence and ErrRepeated. A request without an id
// gets one. If ctx ends while the group is on its way to the journal, the error says that the outcome is open.
func (s *Store) Commit(ctx context.Context, req resource.Request, fn func(resource.Tx) error) (uint64, error) {
	return s.submit(ctx, &call{request: req, fn: fn})
}

// submit gives a call to the goroutine that runs all of them, and waits for its outcome.
func (s *Store) submit(ctx context.Context, c *call) (uint64, error) {
	l := s.leading.Load()
	if l == nil {
		return 0, notLeader()
	}
	if c.request.ID == "" {
		c.request.ID = crand.Text()
	}
	req := c.request
	c.key, c.reply = keyOf(req.ID), make(chan result, 1)
	if _, err := crand.Read(c.seed[:]); err != nil {
		return 0, fmt.Errorf("commit %s: read randomness: %w", req.ID, err)
	}
	return c.commit(ctx, l)
}

// commit brings a call into the queue of a term and waits for its answer.
func (c *call) commit(ctx context.Context, l *leadership) (uint64, error) {
	req := c.request
	select {
	case l.queue <- c:
	case <-l.ended:
		return 0, notLeader()
	case <-ctx.Done():
		return 0, fmt.Errorf("commit %s: %w: %w", req.ID, errNotRun, context.Cause(ctx))
	}
	select {
	case r := <-c.reply:
		return r.seq, r.err
	case <-ctx.Done():
	case <-l.ended:
		// The term's end answers what was in the queue; what slipped in behind it was never run.
		select {
		case r := <-c.reply:
			return r.seq, r.err
		default:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	select {
	case r := <-c.reply:
		return r.seq, r.err
	default:
	}
	switch {
	case ctx.Err() == nil:
		return 0, notLeader()
	case c.ran:
		return 0, fmt.Errorf("commit %s: %w: %w", req.ID, errOutcomeOpen, context.Cause(ctx))
	default:
		return 0, fmt.Errorf("commit %s: %w: %w", req.ID, errNotRun, context.Cause(ctx))
	}
}

// DryRun runs a function on a transaction that is thrown away, and returns the states before and after it. It needs no
// leadership.
func (s *Store) DryRun(ctx context.Context, req resource.Request, fn func(resource.Tx) error) (before, after resource.Reader, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, nil, fmt.Errorf("dry-run %s: read randomness: %w", req.ID, err)
	}
	cur := s.current.Load()
	was := s.viewOf(cur)
	db := cur.db.Snapshot()
	txn := db.Txn(true)
	defer txn.Abort()
	t := begin(txn, cur.at.Seq+1, was.observed, req, s.now(), seed)
	if err := t.run(fn); err != nil {
		return nil, nil, err
	}
	txn.Commit()
	return was, &view{seq: cur.at.Seq + 1, txn: db.Txn(false), observed: was.observed}, nil
}

// now is the time as it is written into the journal and read from it again.
func (s *Store) now() time.Time { return s.clock().UTC().Round(0) }

// Lead makes this store the writer: it catches up with the journal, then Commit works until ctx ends or somebody else has
// written. It returns ctx's cause or why it had to stop: journal.ErrFenced (follow again), journal.ErrDiverged or
// journal.ErrUnknown (both: load anew), or the journal's refusal.
func (s *Store) Lead(ctx context.Context) error {
	if !s.busy.TryLock() {
		return fmt.Errorf("lead: %w", errBusy)
	}
	defer s.busy.Unlock()
	if err := s.catchUp(ctx); err != nil {
		return fmt.Errorf("lead: catch up with the journal: %w", err)
	}
	l := &leadership{queue: make(chan *call, queueLength), ended: make(chan struct{})}
	g, gctx := errgroup.WithContext(ctx)
	s.leading.Store(l)
	s.log.Info().Uint64("seq", s.Seq()).Msg("leading")
	g.Go(func() error {
		err := s.serve(gctx, l)
		s.leading.Store(nil)
		close(l.ended)
		for {
			select {
			case c := <-l.queue:
				c.reply <- result{err: notLeader()}
				continue
			default:
			}
			return err
		}
	})
	if s.js != nil {
		g.Go(func() error { return s.project(gctx) })
	}
	err := g.Wait()
	s.log.Info().Uint64("seq", s.Seq()).AnErr("cause", err).Msg("not leading any more")
	return fmt.Errorf("lead: %w", err)
}

// catchUp applies the journal up to its end.
func (s *Store) catchUp(ctx context.Context) error {
	for {
		at := s.current.Load().at
		last, err := s.journal.Last(ctx)
		if err != nil {
			return err
		}
		if last == at {
			return nil
		}
		if last.Seq <= at.Seq {
			return fmt.Errorf("its end is message %d, the state is of message %d: %w", last.Seq, at.Seq, journal.ErrDiverged)
		}
		if err := s.journal.Verify(ctx, at); err != nil {
			return err
		}
		if err := s.journal.Replay(ctx, at.Seq+1, s.applyMessage); err != nil {
			return err
		}
	}
}

// group is a group of transactions that is being gathered or on its way.
type group struct {
	base    *snapshot // what it stands on; not yet durable while the group before is on its way
	db      *memdb.MemDB
	txn     *memdb.Txn // nil once it is sealed
	calls   []*call
	results []error  // by call
	known   []uint64 // by call: the sequence that a repeated request got, 0 where it is the group's own
	entries []Entry
	encoded []journal.Encoded
	size    int
	keys    map[requestKey]struct{}
	full    bool
	// mark makes the group one of its own kind, without entries.
	mark *journal.Mark
}

func (g *group) seq() uint64 { return g.base.at.Seq + 1 }

// appended is the outcome of an append.
type appended struct {
	at  journal.Position
	err error
}

// committer is the goroutine that runs all functions. While one group is on its way to the journal it gathers the next, on
// top of what is not durable yet; should the first fail, the second is run again.
type committer struct {
	s        *Store
	l        *leadership
	open     *group
	inFlight *group
	done     chan appended
	// alone: the last group was of one call, and nobody waited behind it.
	alone bool
	carry []*call // to be run before the queue: what did not fit, or must run again
}

func (s *Store) serve(ctx context.Context, l *leadership) error {
	v := &committer{s: s, l: l, done: make(chan appended, 1)}
	v.open = v.newGroup(s.current.Load())
	err := v.loop(ctx)
	// A group on its way is waited for: append gives up when ctx has ended.
	if v.inFlight != nil {
		if r := <-v.done; r.err == nil {
			v.finish(r.at)
		} else {
			v.fail(v.inFlight, outcomeError(r.err))
		}
	}
	v.fail(v.open, notLeader())
	for _, c := range v.carry {
		c.reply <- result{err: notLeader()}
	}
	return err
}

func (v *committer) newGroup(base *snapshot) *group {
	db := base.db.Snapshot()
	return &group{base: base, db: db, txn: db.Txn(true), keys: map[requestKey]struct{}{}}
}

func (v *committer) loop(ctx context.Context) error {
	for {
		// What is there goes first into the group; a group leaves when nothing more is there or it is full.
		if !v.open.full {
			if c := v.next(); c != nil {
				v.run(c)
				select {
				case r := <-v.done:
					if err := v.acked(r); err != nil {
						return err
					}
				default:
				}
				continue
			}
		}
		if v.inFlight == nil && len(v.open.calls) > 0 {
			v.send(ctx)
			continue
		}
		queue := v.l.queue
		if v.open.full {
			queue = nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case c := <-queue:
			v.run(c)
		case r := <-v.done:
			if err := v.acked(r); err != nil {
				return err
			}
		}
	}
}

// next is a call that waits, or nil.
func (v *committer) next() *call {
	if len(v.carry) > 0 {
		c := v.carry[0]
		v.carry = v.carry[1:]
		return c
	}
	select {
	case c := <-v.l.queue:
		return c
	default:
		return nil
	}
}

// run runs a call's function in the open group.
func (v *committer) run(c *call) {
	g := v.open
	if c.notes != nil {
		v.note(c)
		return
	}
	if seq, ok := v.s.requests.find(c.key); ok {
		g.add(c, ErrRepeated, seq)
		return
	}
	if _, ok := g.keys[c.key]; ok {
		g.add(c, ErrRepeated, 0)
		return
	}
	if v.inFlight != nil {
		if _, ok := v.inFlight.keys[c.key]; ok {
			g.add(c, ErrRepeated, v.inFlight.seq())
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return
	}
	c.ran = true
	if c.now.IsZero() {
		c.now = v.s.now()
	}
	if c.mark != nil {
		v.runMark(c)
		return
	}
	if c.restate != nil {
		v.runRestate(c)
		return
	}
	t := begin(g.txn, g.seq(), v.s.observedNow(), c.request, c.now, c.seed)
	err := t.run(c.fn)
	if broken, ok := errors.AsType[*panicError](err); ok {
		v.s.log.Error().Str("cause", c.request.ID).Err(err).Bytes("stack", broken.stack).Msg("a transaction's function panicked")
	}
	var entry Entry
	var encoded journal.Encoded
	if err == nil {
		entry, encoded, err = t.encode()
	}
	if limit := v.s.journal.MaxMessage() - len(journal.Join(nil)); err == nil && len(encoded) > limit {
		err = &resource.Error{
			Code: resource.CodeCapacity, Field: "request",
			Message: fmt.Sprintf("%s changes %d resources at once, which is %d bytes; at most %d fit into one transaction",
				c.request.Op, len(entry.Changes), len(encoded), limit),
			Remedy: "do it in smaller steps",
		}
	}
	if err == nil && encoded != nil && len(g.encoded) > 0 && g.size+len(encoded) > journal.MaxGroup {
		// It opens the next group, where it gets another revision.
		if err = t.rollback(); err == nil {
			v.carry = append([]*call{c}, v.carry...)
			g.full = true
			return
		}
	}
	if err != nil {
		if undoErr := t.rollback(); undoErr != nil {
			err = errors.Join(err, undoErr)
		}
		g.add(c, err, 0)
		return
	}
	g.add(c, nil, 0)
	if encoded == nil {
		return
	}
	if len(entry.Changes) > 0 { // what changed nothing may come again
		g.keys[c.key] = struct{}{}
	}
	g.entries = append(g.entries, entry)
	g.encoded = append(g.encoded, encoded)
	g.size += len(encoded) + 1
	g.full = g.size >= journal.MaxGroup || len(g.entries) >= groupEntries
}

// add notes a call and how it ended. The answer waits for the group, and so for all that the function has seen.
func (g *group) add(c *call, err error, seq uint64) {
	g.calls = append(g.calls, c)
	g.results = append(g.results, err)
	g.known = append(g.known, seq)
	g.full = g.full || len(g.calls) >= 4*groupEntries
}

// send puts the open group on its way and opens the next one on top of it.
func (v *committer) send(ctx context.Context) {
	g := v.open
	if len(g.encoded) == 0 && g.mark == nil {
		// Nothing was changed, and what the functions saw is durable.
		g.txn.Abort()
		v.answer(g, g.base.at.Seq)
		v.open = v.newGroup(g.base)
		return
	}
	g.txn.Commit()
	g.txn = nil
	v.inFlight = g
	v.open = v.newGroup(&snapshot{at: journal.Position{Seq: g.seq()}, db: g.db})
	after, encoded, mark := g.base.at, g.encoded, g.mark
	store := func() {
		// The end of the term does not cut it off at once: its callers should learn how it went.
		grace, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		defer context.AfterFunc(ctx, func() {
			t := time.AfterFunc(appendGrace, cancel)
			context.AfterFunc(grace, func() { t.Stop() })
		})()
		var r appended
		if mark != nil {
			r.at, r.err = v.s.journal.AppendMark(grace, after, *mark)
		} else {
			r.at, r.err = v.s.journal.Append(grace, after, journal.Join(encoded))
		}
		v.done <- r
	}
	alone := len(g.calls) == 1 && len(v.l.queue) == 0
	if alone && v.alone {
		// One caller at a time: there is nothing to gather meanwhile, and the way over another goroutine costs some 20 us.
		store()
	} else {
		go store()
	}
	v.alone = alone
}

// acked takes the outcome of the group on its way. An error ends the term.
func (v *committer) acked(r appended) error {
	switch {
	case r.err == nil:
		v.finish(r.at)
		return nil
	case errors.Is(r.err, journal.ErrFenced), errors.Is(r.err, journal.ErrDiverged), errors.Is(r.err, journal.ErrUnknown):
		v.fail(v.inFlight, outcomeError(r.err))
		v.inFlight = nil
		return r.err
	}
	// The journal refused the group: it is full, say. The next one ran on what is not there: it is run again.
	v.s.log.Error().Err(r.err).Uint64("seq", v.inFlight.seq()).Msg("the journal refuses to store")
	v.fail(v.inFlight, &resource.Error{
		Code: resource.CodeInternal, Message: "the journal refuses to store: " + r.err.Error(), Remedy: "look at the space of the NATS server's storage and at its limits",
	})
	v.inFlight = nil
	open := v.open
	open.txn.Abort()
	v.open = v.newGroup(v.s.current.Load())
	v.carry = append(open.calls, v.carry...)
	return nil
}

func (v *committer) finish(at journal.Position) {
	g := v.inFlight
	v.inFlight = nil
	now := v.s.clock()
	for k := range g.keys {
		v.s.requests.put(k, at.Seq, now)
	}
	snap := &snapshot{at: at, db: g.db}
	v.open.base = snap
	v.s.publish(snap, g.entries, g.size, func() { v.answer(g, at.Seq) })
}

func (v *committer) answer(g *group, seq uint64) {
	for i, c := range g.calls {
		r := result{seq: seq, err: g.results[i]}
		switch {
		case g.known[i] != 0:
			r.seq = g.known[i]
		case r.err != nil && !errors.Is(r.err, ErrRepeated):
			r.seq = 0
		}
		c.reply <- r
	}
}

func (v *committer) fail(g *group, err error) {
	if g.txn != nil {
		g.txn.Abort()
	}
	for _, c := range g.calls {
		c.reply <- result{err: err}
	}
}

// outcomeError is what callers get whose group could not be stored.
func outcomeError(err error) error {
	if errors.Is(err, journal.ErrUnknown) {
		return fmt.Errorf("%w: %w", errOutcomeOpen, err)
	}
	return notLeader()
}
