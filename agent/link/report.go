package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"shoal/agent/host"
	"shoal/desired"
	"shoal/subjects"
)

// reporter sends the newest status of each item until it is acknowledged.
type reporter struct {
	host string
	log  zerolog.Logger
	// wake says that there is something to do.
	wake chan struct{}

	mu sync.Mutex
	// last is the newest status of everything that is there, as it was encoded.
	last map[desired.Ref][]byte
	// dirty is what is to be sent; nil bytes say that the item is gone. sending is what is under way.
	dirty   map[desired.Ref][]byte
	sending map[desired.Ref]bool
	online  bool
	whole   bool // everything is to be sent again
	// heard is set once a status was acknowledged.
	heard bool
	// stored is the sequence at which the bucket holds an item's status, as far as that is known.
	stored map[desired.Ref]uint64

	// names are the items that may have a status in the bucket, kept in a file: an agent that died, or a host that lost
	// power, between the end of an item and the purge of its status must still purge it. Nobody else would.
	names map[desired.Ref]struct{}
	file  string
}

// newReporter takes over the names that an earlier process has left in file; "" for no file.
func newReporter(hostID, file string, log zerolog.Logger) (*reporter, error) {
	r := &reporter{
		host: hostID, file: file, log: log, wake: make(chan struct{}, 1),
		last: map[desired.Ref][]byte{}, dirty: map[desired.Ref][]byte{}, sending: map[desired.Ref]bool{}, stored: map[desired.Ref]uint64{}, names: map[desired.Ref]struct{}{},
	}
	if file == "" {
		return r, nil
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the names of reported items: %w", err)
	}
	var refs []desired.Ref
	if err := json.Unmarshal(b, &refs); err != nil {
		// They serve to tidy up only: an agent must not stay away for them.
		log.Warn().Err(err).Msg("names of reported items can't be read")
	}
	for _, ref := range refs {
		r.names[ref] = struct{}{}
	}
	return r, nil
}

// remember keeps the names of what is about to be sent for the first time.
func (r *reporter) remember() {
	r.mu.Lock()
	added := false
	for ref, b := range r.dirty {
		if _, ok := r.names[ref]; !ok && b != nil {
			r.names[ref] = struct{}{}
			added = true
		}
	}
	refs := slices.SortedFunc(maps.Keys(r.names), desired.Ref.Compare)
	r.mu.Unlock()
	if !added || r.file == "" {
		return
	}
	b, err := json.Marshal(refs)
	if err == nil {
		err = host.WriteFile(r.file, b, 0o600)
	}
	if err != nil {
		r.log.Warn().Err(err).Msg("names of reported items can't be written")
	}
}

// purgeForgotten purges the statuses of items that an earlier process has reported and that nobody knows any more.
func (r *reporter) purgeForgotten() {
	r.mu.Lock()
	for ref := range r.names {
		_, known := r.last[ref]
		if _, underway := r.dirty[ref]; !known && !underway {
			r.dirty[ref] = nil
		}
	}
	r.mu.Unlock()
	r.rouse()
}

// put takes a status, nil for an item that is gone. It never blocks.
func (r *reporter) put(ref desired.Ref, status *desired.Status) {
	var b []byte
	if status != nil {
		var err error
		if b, err = status.Encode(); err != nil {
			r.log.Error().Err(err).Stringer("id", ref).Msg("status can't be encoded")
			return
		}
	}
	r.mu.Lock()
	if b == nil {
		delete(r.last, ref)
	} else {
		r.last[ref] = b
	}
	r.dirty[ref] = b
	r.mu.Unlock()
	r.rouse()
}

// again sends the newest status of an item once more.
func (r *reporter) again(ref desired.Ref) {
	r.mu.Lock()
	if b, ok := r.last[ref]; ok {
		r.dirty[ref] = b
	}
	r.mu.Unlock()
	r.rouse()
}

func (r *reporter) pause() {
	r.mu.Lock()
	r.online = false
	r.mu.Unlock()
}

// resume is called after each connection: the server may have lost what it had acknowledged.
func (r *reporter) resume() {
	r.mu.Lock()
	r.online, r.whole = true, true
	clear(r.stored)
	r.mu.Unlock()
	r.rouse()
}

func (r *reporter) rouse() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// inFlight is how many statuses are under way at once.
const inFlight = 64

// run sends until ctx ends.
func (r *reporter) run(ctx context.Context, nc *nats.Conn, spread time.Duration) {
	var sends sync.WaitGroup
	defer sends.Wait()
	slots := make(chan struct{}, inFlight)
	all := time.NewTimer(time.Hour)
	all.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-all.C:
			r.mu.Lock()
			for ref, b := range r.last {
				if _, newer := r.dirty[ref]; !newer {
					r.dirty[ref] = b
				}
			}
			r.mu.Unlock()
		}
		r.mu.Lock()
		if r.whole {
			r.whole = false
			all.Reset(rand.N(spread + 1))
		}
		r.mu.Unlock()
		r.remember()
		for {
			ref, b, ok := r.next()
			if !ok {
				break
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			sends.Go(func() {
				defer func() { <-slots }()
				after := r.after(ref)
				seq, err := r.send(ctx, nc, ref, b, after)
				if errors.Is(err, errOther) {
					r.lost(ref, after)
					seq, err = r.send(ctx, nc, ref, b, 0)
				}
				if err == nil {
					r.store(ref, b, seq)
				}
				r.done(ctx, ref, b, err)
			})
		}
	}
}

// next takes something to send; no item is under way twice.
func (r *reporter) next() (desired.Ref, []byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.online {
		return desired.Ref{}, nil, false
	}
	for ref, b := range r.dirty {
		if !r.sending[ref] {
			delete(r.dirty, ref)
			r.sending[ref] = true
			return ref, b, true
		}
	}
	return desired.Ref{}, nil, false
}

// done notes how sending went. What was not acknowledged is sent again, unless there is something newer.
func (r *reporter) done(ctx context.Context, ref desired.Ref, b []byte, err error) {
	if err != nil && ctx.Err() == nil {
		r.log.Debug().Err(err).Stringer("id", ref).Msg("status not acknowledged")
		// Not at once: the server has just refused or lost it.
		wait := time.NewTimer(jitter(time.Second))
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
	r.mu.Lock()
	delete(r.sending, ref)
	_, newer := r.dirty[ref]
	switch {
	case err != nil && !newer:
		r.dirty[ref] = b
	case err == nil && b == nil && !newer:
		delete(r.names, ref)
	}
	again := len(r.dirty) > 0 || r.whole
	r.mu.Unlock()
	if again {
		r.rouse()
	}
}

// tombstoneTTL is how long the mark of a purged status stays in the bucket.
const tombstoneTTL = "1h"

// errOther: the bucket holds another status of an item than the one that it had acknowledged, or none.
var errOther = errors.New("the bucket does not hold what it had acknowledged")

// after is the sequence at which the bucket is to hold what was sent of an item last; 0 where that is not known.
func (r *reporter) after(ref desired.Ref) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stored[ref]
}

// store notes where the bucket holds a status that it has acknowledged. After an error that stays as it was: if the bucket has taken the
// status all the same, everything is sent once more than it need be.
func (r *reporter) store(ref desired.Ref, b []byte, seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b == nil {
		delete(r.stored, ref)
	} else {
		r.stored[ref], r.heard = seq, true
	}
}

// acked reports whether the server has acknowledged a status yet.
func (r *reporter) acked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.heard
}

// lost has everything sent again, once: the bucket was made anew, or rolled back, with nobody having been disconnected. Nobody but this agent
// writes its keys, so that a bucket which does not hold one of them at the sequence that it had acknowledged has lost something.
func (r *reporter) lost(ref desired.Ref, after uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stored[ref] != after {
		return // another status has found out
	}
	clear(r.stored)
	r.whole = true
	r.log.Warn().Uint64("seq", after).Stringer("id", ref).Msg("bucket of statuses does not hold what it had acknowledged; all are sent again")
}

// send writes one status and gives the sequence that is acknowledged. It is an errOther where the bucket does not hold the item's status at
// sequence after; 0 for whatever it holds.
func (r *reporter) send(ctx context.Context, nc *nats.Conn, ref desired.Ref, b []byte, after uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	m := nats.NewMsg(subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(r.host, string(ref.Kind), ref.ID)))
	m.Data = b
	if after > 0 {
		m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(after, 10))
	}
	if b == nil {
		m.Header.Set("KV-Operation", "PURGE")
		m.Header.Set("Nats-Rollup", "sub")
		m.Header.Set("Nats-TTL", tombstoneTTL)
	}
	answer, err := nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return 0, fmt.Errorf("report %s: %w", ref, err)
	}
	var ack struct {
		Error *struct {
			Code        jetstream.ErrorCode `json:"err_code"`
			Description string              `json:"description"`
		} `json:"error"`
		Seq uint64 `json:"seq"`
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		return 0, fmt.Errorf("report %s: read the acknowledgement: %w", ref, err)
	}
	if ack.Error != nil && (ack.Error.Code == jetstream.JSErrCodeStreamWrongLastSequence || ack.Error.Code == jetstream.JSErrCodeStreamWrongLastSequenceConstant) {
		return 0, fmt.Errorf("report %s: %w", ref, errOther)
	}
	if ack.Error != nil {
		return 0, fmt.Errorf("report %s: %s", ref, ack.Error.Description)
	}
	return ack.Seq, nil
}
