package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"

	"shoal/desired"
	"shoal/subjects"
)

// view is what is known of the host's bucket.
type view struct {
	host   string
	bucket string
	// keys are the bucket's messages by key; deleted ones are left out.
	keys map[string]message
	// last is the bucket's newest message that was seen.
	last mark
	// delivered is the generation that was handed on last, or accepted before the start.
	delivered uint64
	// content is the hash of its head.
	content string
}

// mark identifies a message. The sequence alone does not: a bucket that was rolled back hands it out again.
type mark struct {
	seq  uint64
	time string
}

type message struct {
	mark
	hash string
	data []byte
}

func newView(host string) *view {
	return &view{host: host, bucket: subjects.DesiredBucket(host), keys: map[string]message{}}
}

// pageSize is how many messages one request asks for. A page is read by the server in one go, so that a document that fits
// one page is never seen half written.
const pageSize = 2000

// read brings the view up to what the bucket holds: only what is newer than the last message that was seen, or everything.
// An error leaves the view as it was.
func (v *view) read(ctx context.Context, nc *nats.Conn, whole bool) error {
	keys, last := v.keys, v.last
	if whole {
		keys, last = map[string]message{}, mark{}
	}
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return fmt.Errorf("read %s: %w", v.bucket, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	changed := map[string]message{}
	for more := true; more; {
		req, err := json.Marshal(map[string]any{"seq": last.seq + 1, "next_by_subj": subjects.BucketSubject(v.bucket, ">"), "batch": pageSize})
		if err != nil {
			return err
		}
		if err := nc.PublishRequest(subjects.DirectGet(v.bucket), inbox, req); err != nil {
			return fmt.Errorf("read %s: %w", v.bucket, err)
		}
		if more, err = v.page(ctx, sub, changed, &last); err != nil {
			return fmt.Errorf("read %s: %w", v.bucket, err)
		}
	}
	for key, m := range changed {
		if m.data == nil {
			delete(keys, key)
		} else {
			keys[key] = m
		}
	}
	v.keys, v.last = keys, last
	return nil
}

// page reads the answers to one request.
func (v *view) page(ctx context.Context, sub *nats.Subscription, changed map[string]message, last *mark) (more bool, err error) {
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return false, err
		}
		switch status := m.Header.Get("Status"); status {
		case "":
			seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
			if err != nil {
				return false, fmt.Errorf("answer without a sequence: %w", err)
			}
			*last = mark{seq, m.Header.Get("Nats-Time-Stamp")}
			key, ok := subjects.BucketKey(v.bucket, m.Header.Get("Nats-Subject"))
			if !ok {
				return false, fmt.Errorf("answer about %q, which is not in the bucket", m.Header.Get("Nats-Subject"))
			}
			if m.Header.Get("KV-Operation") != "" || m.Header.Get("Nats-Marker-Reason") != "" {
				changed[key] = message{mark: *last}
				continue
			}
			changed[key] = message{mark: *last, hash: desired.Hash(m.Data), data: m.Data}
		case "204": // end of the page
			pending := m.Header.Get("Nats-Num-Pending")
			return pending != "" && pending != "0", nil
		case "404": // nothing (more)
			return false, nil
		case "503":
			return false, nats.ErrNoResponders
		default:
			return false, fmt.Errorf("%s %s", status, m.Header.Get("Description"))
		}
	}
}

// probe asks for the bucket's newest message, and reports whether it is the one that was seen last.
func (v *view) probe(ctx context.Context, nc *nats.Conn) (same bool, err error) {
	req, err := json.Marshal(map[string]any{"last_by_subj": subjects.BucketSubject(v.bucket, ">")})
	if err != nil {
		return false, err
	}
	m, err := nc.RequestWithContext(ctx, subjects.DirectGet(v.bucket), req)
	if err != nil {
		return false, err
	}
	if m.Header.Get("Status") == "404" {
		return v.last == mark{}, nil
	}
	return m.Header.Get("Nats-Sequence") == strconv.FormatUint(v.last.seq, 10) && m.Header.Get("Nats-Time-Stamp") == v.last.time, nil
}

// state is what a view makes of its bucket.
type state int

const (
	empty   state = iota // no head: nobody has an opinion about this host
	torn                 // the head and the items don't belong together (yet)
	foreign              // a document that this agent does not understand
	behind               // a whole document, older than the one that was handed on
	same                 // the one that was handed on
	newer                // a new one
)

// deliver notes what was handed on.
func (v *view) deliver(head desired.Head) { v.delivered, v.content = head.Gen, headHash(head) }

// headHash is the hash of a head, and by those of its items that of a document; "" for one that can't be encoded, and no bucket holds
// one of those.
func headHash(head desired.Head) string {
	b, err := head.Encode()
	if err != nil {
		return ""
	}
	return desired.Hash(b)
}

// document puts the document together. The error says why it is foreign, or torn.
func (v *view) document() (desired.Document, state, error) {
	raw, ok := v.keys[subjects.HeadKey]
	if !ok {
		if v.delivered > 0 {
			return desired.Document{}, behind, nil
		}
		return desired.Document{}, empty, nil
	}
	head, err := desired.DecodeHead(raw.data)
	if fault, ok := errors.AsType[*desired.Fault](err); ok {
		return desired.Document{}, foreign, fault
	}
	if err != nil || head.Host != v.host {
		return desired.Document{}, torn, err
	}
	switch {
	case head.Gen < v.delivered:
		return desired.Document{}, behind, nil
	case head.Gen == v.delivered && headHash(head) == v.content:
		return desired.Document{}, same, nil
	case head.Gen == v.delivered:
		// The controller lost what it had told, and has come to the same generation by another way.
		return desired.Document{}, behind, nil
	}
	doc := desired.Document{Head: head, Items: make(map[desired.Ref]desired.Item, len(head.Items))}
	for ref, hash := range head.Items {
		m, ok := v.keys[subjects.ItemKey(string(ref.Kind), ref.ID)]
		if !ok || m.hash != hash {
			return desired.Document{}, torn, nil
		}
		it, err := desired.DecodeItem(m.data)
		if err != nil || it.Ref() != ref {
			return desired.Document{}, torn, err
		}
		doc.Items[ref] = it
	}
	return doc, newer, nil
}
