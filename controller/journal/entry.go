package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

// MaxGroup is how many bytes of entries are put together into one message.
const MaxGroup = 512 << 10

// Change is what one transaction made of one resource.
type Change struct {
	Kind resource.Kind `json:"kind"`
	ID   string        `json:"id"`
	// Value is the whole resource; nil where it was deleted.
	Value json.RawMessage `json:"value,omitempty"`
}

// Entry is one transaction.
type Entry struct {
	Request resource.Request `json:"request"`
	// At is the transaction's time, in UTC.
	At      time.Time `json:"at"`
	Changes []Change  `json:"changes,omitempty"`
	// Error says why a call was refused; such an entry has no changes, as has that of a call that only read.
	Error string `json:"error,omitempty"`
	// Reply is what the caller was told, without secrets. Of resources that are among the changes it has the kind and the id only.
	Reply json.RawMessage `json:"reply,omitempty"`
	// More is how many calls like this one, of the same caller, came too fast to be recorded one by one.
	More uint64 `json:"more,omitempty"`
}

// IsNote reports whether an entry only records that a call was made: it changed nothing, and its request may come again.
func (e Entry) IsNote() bool { return len(e.Changes) == 0 }

// Group is what one message holds.
type Group struct {
	Entries []Entry `json:"entries"`
	// After is the message that this one follows where there is a gap in the sequences between them: a restored journal goes
	// on beyond every generation that hosts may have been told.
	After *Position `json:"after,omitempty"`
	// Mark is the end of a round of restating; such a message has no entries, and a subject of its own.
	Mark *Mark `json:"mark,omitempty"`
}

// OpRestate is the operation of entries that say once more what resources are, unchanged: their last versions stay when
// the messages before are purged. They are no changes, and no history.
const OpRestate = "journal.restate"

// Restates reports whether an entry changes nothing and only says once more what is.
func (e Entry) Restates() bool { return e.Request.Op == OpRestate }

// Mark says that every resource which is there has been restated, or changed, in the messages from From to this one: whoever
// begins to read there, or anywhere before, has the whole state from the mark on.
type Mark struct {
	From uint64 `json:"from"`
}

// Encoded is the JSON of an entry, made once when its transaction has run.
type Encoded []byte

// Encode makes an entry's JSON. Values and the reply are taken as they are: they must be valid JSON, as those that encoding/json
// made are. (encoding/json itself would scan each of them again.)
func (e Entry) Encode() (Encoded, error) {
	n := 256 + len(e.Request.Params) + len(e.Reply)
	for _, c := range e.Changes {
		n += 96 + len(c.Value)
	}
	b := bytes.NewBuffer(make([]byte, 0, n))
	request, err := desired.Canonical(e.Request)
	if err != nil {
		return nil, fmt.Errorf("encode request %s: %w", e.Request.ID, err)
	}
	b.WriteString(`{"request":`)
	b.Write(request)
	b.WriteString(`,"at":`)
	at, err := e.At.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encode time of request %s: %w", e.Request.ID, err)
	}
	b.Write(at)
	if len(e.Changes) > 0 {
		b.WriteString(`,"changes":[`)
		for i, c := range e.Changes {
			if i > 0 {
				b.WriteByte(',')
			}
			// Kinds and ids are tokens of subjects: they need no escaping.
			fmt.Fprintf(b, `{"kind":"%s","id":"%s"`, c.Kind, c.ID)
			if c.Value != nil {
				b.WriteString(`,"value":`)
				b.Write(c.Value)
			}
			b.WriteByte('}')
		}
		b.WriteByte(']')
	}
	if e.Error != "" {
		text, err := desired.Canonical(e.Error)
		if err != nil {
			return nil, fmt.Errorf("encode error of request %s: %w", e.Request.ID, err)
		}
		b.WriteString(`,"error":`)
		b.Write(text)
	}
	if len(e.Reply) > 0 {
		b.WriteString(`,"reply":`)
		b.Write(e.Reply)
	}
	if e.More > 0 {
		fmt.Fprintf(b, `,"more":%d`, e.More)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// Join makes the JSON of a group.
func Join(entries []Encoded) []byte {
	n := len(groupHead) + len(groupTail)
	for _, e := range entries {
		n += len(e) + 1
	}
	b := append(make([]byte, 0, n), groupHead...)
	for i, e := range entries {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, e...)
	}
	return append(b, groupTail...)
}

const groupHead, groupTail = `{"entries":[`, `]}`

// Encode makes a group's JSON.
func (g Group) Encode() ([]byte, error) {
	entries := make([]Encoded, len(g.Entries))
	for i, e := range g.Entries {
		var err error
		if entries[i], err = e.Encode(); err != nil {
			return nil, err
		}
	}
	b := Join(entries)
	for _, more := range []struct {
		name  string
		value any
		there bool
	}{{"after", g.After, g.After != nil}, {"mark", g.Mark, g.Mark != nil}} {
		if !more.there {
			continue
		}
		v, err := desired.Canonical(more.value)
		if err != nil {
			return nil, fmt.Errorf("encode %s of journal group: %w", more.name, err)
		}
		b = append(fmt.Appendf(b[:len(b)-1], ",%q:", more.name), v...)
		b = append(b, '}')
	}
	return b, nil
}

// Decode reads a group. Unknown fields are ignored: a newer controller may have written them.
func Decode(b []byte) (Group, error) {
	var g Group
	if err := json.Unmarshal(b, &g); err != nil {
		return Group{}, fmt.Errorf("decode journal group: %w", err)
	}
	for _, e := range g.Entries {
		if err := e.check(); err != nil {
			return Group{}, fmt.Errorf("decode journal group: %w", err)
		}
	}
	return g, nil
}

// check holds an entry that was read to what one must be.
func (e Entry) check() error {
	for i, c := range e.Changes {
		if c.Kind == "" || c.ID == "" {
			return fmt.Errorf("change %d of request %q names no resource", i, e.Request.ID)
		}
		// A stored null is a deletion too.
		if string(c.Value) == "null" {
			e.Changes[i].Value = nil
		}
	}
	return nil
}

// Pick reads some entries of a group as Join and Encode made it, by their numbers in ascending order, and only looks where the others
// end.
func Pick(b []byte, numbers []int) ([]Entry, error) {
	rest, ok := bytes.CutPrefix(b, []byte(groupHead))
	if !ok {
		return nil, errors.New("decode journal group: it does not begin as one")
	}
	out := make([]Entry, 0, len(numbers))
	for i := 0; len(out) < len(numbers); i++ {
		n := object(rest)
		if n == 0 || n == len(rest) {
			return nil, fmt.Errorf("decode journal group: it has %d entries, number %d is wanted", i, numbers[len(out)])
		}
		if numbers[len(out)] == i {
			var e Entry
			err := json.Unmarshal(rest[:n], &e)
			if err == nil {
				err = e.check()
			}
			if err != nil {
				return nil, fmt.Errorf("decode entry %d of journal group: %w", i, err)
			}
			out = append(out, e)
		}
		rest = rest[n+1:] // also the comma
	}
	return out, nil
}

// object is how long the JSON object is that some bytes begin with; 0 where there is none.
func object(b []byte) int {
	if len(b) == 0 || b[0] != '{' {
		return 0
	}
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i + 1
			}
		case '"':
			for i++; ; i++ {
				n := bytes.IndexByte(b[i:], '"')
				if n < 0 {
					return 0
				}
				i += n
				back := i
				for b[back-1] == '\\' {
					back--
				}
				if (i-back)%2 == 0 {
					break
				}
			}
		}
	}
	return 0
}
