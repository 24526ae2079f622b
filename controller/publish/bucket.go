package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"shoal/controller/plan"
	"shoal/desired"
	"shoal/subjects"
)

// bucket is what a host's bucket holds.
type bucket struct {
	// whole says that head and items belong together.
	whole    bool
	gen      uint64
	bits     plan.HeadBits
	headHash string
	items    map[desired.Ref]sent
	// there is whether the bucket exists, last its stream's newest sequence before it was read.
	there bool
	last  uint64
}

// pageSize is how many messages one request asks for.
const pageSize = 2000

// readBucket reads a host's bucket by direct gets, which need no consumer and no stream information. A bucket that is not
// there is empty.
func (p *Publisher) readBucket(ctx context.Context, host string) (bucket, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*writeTimeout)
	defer cancel()
	name := subjects.DesiredBucket(host)
	b := bucket{items: map[desired.Ref]sent{}}
	stream, err := p.js.Stream(ctx, subjects.BucketStream(name))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return b, nil
	}
	if err != nil {
		return b, fmt.Errorf("read %s: %w", name, err)
	}
	b.there, b.last = true, stream.CachedInfo().State.LastSeq
	sub, err := p.cfg.Conn.SubscribeSync(p.cfg.Conn.NewRespInbox())
	if err != nil {
		return b, fmt.Errorf("read %s: %w", name, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	var head []byte
	take := func(m *nats.Msg) error {
		key, ok := subjects.BucketKey(name, m.Header.Get("Nats-Subject"))
		if !ok || m.Header.Get("KV-Operation") != "" || m.Header.Get("Nats-Marker-Reason") != "" {
			return nil
		}
		if key == subjects.HeadKey {
			head = m.Data
			return nil
		}
		it, err := desired.DecodeItem(m.Data)
		if err != nil {
			// Written by nobody of ours, so no error: taken as an item without content it is overwritten or purged like any other.
			kind, id, err := subjects.ParseItemKey(key)
			if err == nil {
				b.items[desired.Ref{Kind: desired.Kind(kind), ID: id}] = sent{}
			}
			return nil
		}
		content, err := contentHash(it)
		if err != nil {
			return err
		}
		b.items[it.Ref()] = sent{rev: it.Rev, cause: it.Cause, content: content, wire: desired.Hash(m.Data)}
		return nil
	}
	for next, more := uint64(1), true; more; {
		req, err := json.Marshal(map[string]any{"seq": next, "next_by_subj": subjects.BucketSubject(name, ">"), "batch": pageSize})
		if err != nil {
			return b, err
		}
		if err := p.cfg.Conn.PublishRequest(subjects.DirectGet(name), sub.Subject, req); err != nil {
			return b, fmt.Errorf("read %s: %w", name, err)
		}
		if next, more, err = readPage(ctx, sub, next, take); err != nil {
			return b, fmt.Errorf("read %s: %w", name, err)
		}
	}
	if head == nil {
		return b, nil
	}
	h, err := desired.DecodeHead(head)
	if err != nil || h.Host != host {
		return b, nil // a head that can't be read is no head
	}
	b.gen, b.headHash, b.bits = h.Gen, desired.Hash(head), plan.HeadBits{Shrink: h.Shrink, Policy: h.Policy}
	b.whole = len(h.Items) == len(b.items)
	for ref, hash := range h.Items {
		if b.items[ref].wire != hash {
			b.whole = false
		}
	}
	return b, nil
}

// readPage hands on the answers to one batch request, and tells where the next one starts.
func readPage(ctx context.Context, sub *nats.Subscription, from uint64, take func(*nats.Msg) error) (next uint64, more bool, err error) {
	next = from
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return next, false, err
		}
		switch m.Header.Get("Status") {
		case "":
			seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
			if err != nil {
				return next, false, fmt.Errorf("answer without a sequence: %w", err)
			}
			next = seq + 1
			if err := take(m); err != nil {
				return next, false, err
			}
		case "204":
			pending := m.Header.Get("Nats-Num-Pending")
			return next, pending != "" && pending != "0", nil
		case "404":
			return next, false, nil
		case "503":
			return next, false, nats.ErrNoResponders
		default:
			return next, false, fmt.Errorf("%s %s", m.Header.Get("Status"), m.Header.Get("Description"))
		}
	}
}

// streamMissing reports whether a host has no bucket, as opposed to one that does not answer.
func (p *Publisher) streamMissing(ctx context.Context, host string) bool {
	_, err := p.js.Stream(ctx, subjects.BucketStream(subjects.DesiredBucket(host)))
	return errors.Is(err, jetstream.ErrStreamNotFound)
}

// headHash is the hash of the head in a host's bucket, "" for none.
func (p *Publisher) headHash(ctx context.Context, host string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	bucket := subjects.DesiredBucket(host)
	req, err := json.Marshal(map[string]any{"last_by_subj": subjects.BucketSubject(bucket, subjects.HeadKey)})
	if err != nil {
		return "", err
	}
	m, err := p.cfg.Conn.RequestWithContext(ctx, subjects.DirectGet(bucket), req)
	if errors.Is(err, nats.ErrNoResponders) && p.streamMissing(ctx, host) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if m.Header.Get("Status") != "" {
		return "", nil
	}
	return desired.Hash(m.Data), nil
}
