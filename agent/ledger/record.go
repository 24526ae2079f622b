package ledger

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	"shoal/desired"
)

// The log is a sequence of records:
//
//	magic "SHL1" | length of body, uint32 | CRC-32C of body, uint32 | body
//
// Numbers are little endian. The body's first byte is its type:
//
//	'D' a document: uvarint length and JSON of the head, then for every item that the log did not have with that hash
//	    uvarint length and JSON of the item. It is in force if all items of the head are known by then, else it is skipped.
//	'A' an act, as JSON
//
// A reader that meets a record it can't read goes on at the next magic whose record is whole.
const (
	magic     = "SHL1"
	prefixLen = len(magic) + 8
	// maxBody bounds what a damaged length can make us look for.
	maxBody = 1 << 30
)

const (
	typeDocument = 'D'
	typeAct      = 'A'
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// act is a one-shot verb on a domain.
type act struct {
	ID   string `json:"id"`
	Seq  uint64 `json:"seq"`
	Done bool   `json:"done,omitempty"`
	Err  string `json:"err,omitempty"`
}

// frame makes a record of a body that starts at prefixLen in b.
func frame(b []byte) []byte {
	copy(b, magic)
	body := b[prefixLen:]
	binary.LittleEndian.PutUint32(b[4:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(body, castagnoli))
	return b
}

// documentRecord is the record of a document with its changed items.
func documentRecord(head []byte, items map[desired.Ref][]byte) []byte {
	size := prefixLen + 1 + binary.MaxVarintLen32 + len(head)
	for _, it := range items {
		size += binary.MaxVarintLen32 + len(it)
	}
	b := make([]byte, prefixLen, size)
	b = append(b, typeDocument)
	b = appendBytes(b, head)
	for _, ref := range slices.SortedFunc(maps.Keys(items), desired.Ref.Compare) {
		b = appendBytes(b, items[ref])
	}
	return frame(b)
}

func actRecord(a act) ([]byte, error) {
	j, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	b := make([]byte, prefixLen, prefixLen+1+len(j))
	b = append(b, typeAct)
	return frame(append(b, j...)), nil
}

func appendBytes(b, data []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(data))), data...)
}

// cutBytes takes what appendBytes put.
func cutBytes(b []byte) (data, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, false
	}
	return b[w : w+int(n)], b[w+int(n):], true
}

// cutRecord takes the record that log starts with. torn says that the log ends before the record does.
func cutRecord(log []byte) (body, rest []byte, torn bool, ok bool) {
	if len(log) < prefixLen {
		return nil, nil, bytes.HasPrefix([]byte(magic), log[:min(len(log), len(magic))]), false
	}
	n := binary.LittleEndian.Uint32(log[4:])
	if string(log[:4]) != magic || n == 0 || n > maxBody {
		return nil, nil, false, false
	}
	if uint64(n) > uint64(len(log)-prefixLen) {
		return nil, nil, true, false
	}
	body = log[prefixLen : prefixLen+int(n)]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(log[8:]) {
		return nil, nil, false, false
	}
	return body, log[prefixLen+int(n):], false, true
}

// clone copies a document as deep as its maps; what is in them is never changed.
func clone(d desired.Document) desired.Document {
	c := desired.Document{Head: d.Head, Items: maps.Clone(d.Items)}
	c.Head.Items = maps.Clone(d.Head.Items)
	c.Head.Policy = maps.Clone(d.Head.Policy)
	return c
}

// state is what a log says.
type state struct {
	has   bool
	doc   desired.Document
	acts  map[string]act
	order []string // ids of acts, the one touched last at the end, perhaps with doubles before it
	// headSize and itemSize are lengths in the log.
	headSize, actSize int
	itemSize          map[desired.Ref]int
	itemsSize         int
}

// accept puts a document in force.
func (s *state) accept(head desired.Head, items map[desired.Ref]desired.Item, headSize int, changed map[desired.Ref][]byte) {
	if s.itemSize == nil {
		s.itemSize = map[desired.Ref]int{}
	}
	for ref, b := range changed {
		s.itemsSize += len(b) - s.itemSize[ref]
		s.itemSize[ref] = len(b)
	}
	for ref, n := range s.itemSize {
		if _, ok := items[ref]; !ok {
			s.itemsSize -= n
			delete(s.itemSize, ref)
		}
	}
	s.has, s.headSize = true, headSize
	s.doc = clone(desired.Document{Head: head, Items: items})
}

// note takes an act.
func (s *state) note(a act) {
	if s.acts == nil {
		s.acts = map[string]act{}
	}
	s.actSize += len(a.Err) - len(s.acts[a.ID].Err)
	if _, ok := s.acts[a.ID]; !ok {
		s.actSize += len(a.ID) + 64
	}
	s.acts[a.ID] = a
	s.order = append(s.order, a.ID)
	if len(s.order) > 2*len(s.acts)+64 {
		s.order = s.actIDs()
	}
}

// actIDs lists the acts, the one touched last at the end.
func (s *state) actIDs() []string {
	seen := make(map[string]bool, len(s.acts))
	ids := make([]string, 0, len(s.acts))
	for _, id := range slices.Backward(s.order) {
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	slices.Reverse(ids)
	return ids
}

// merge takes over acts of a newer state.
func (s *state) merge(newer state) {
	for _, id := range newer.actIDs() {
		if a := newer.acts[id]; a.Seq >= s.acts[id].Seq {
			s.note(a)
		}
	}
}

// size is about what encode gives.
func (s *state) size() int64 {
	return int64(2*prefixLen + s.headSize + s.itemsSize + 4*len(s.itemSize) + s.actSize)
}

// encode is the state as a log. Acts of domains that are not here are forgotten, oldest first, beyond maxActs.
func (s *state) encode() ([]byte, error) {
	var log []byte
	if s.has {
		head, err := s.doc.Head.Encode()
		if err != nil {
			return nil, err
		}
		items := make(map[desired.Ref][]byte, len(s.doc.Items))
		for ref, it := range s.doc.Items {
			if items[ref], err = it.Encode(); err != nil {
				return nil, fmt.Errorf("encode %s: %w", ref, err)
			}
		}
		log = documentRecord(head, items)
	}
	ids := s.actIDs()
	spare := len(ids) - maxActs
	for _, id := range ids {
		if _, here := s.doc.Items[desired.Ref{Kind: desired.KindDomain, ID: id}]; spare > 0 && !here {
			spare--
			continue
		}
		record, err := actRecord(s.acts[id])
		if err != nil {
			return nil, err
		}
		log = append(log, record...)
	}
	return log, nil
}

// replayed is what was made of a log.
type replayed struct {
	state state
	// good is the length of the log up to a tail that a crash cut off.
	good int64
	// damage says what could not be read; rewrite that the log is not to be appended to.
	damage  []string
	rewrite bool
}

// replay reads a log. Whatever the bytes are, it gives the newest document that is whole.
func replay(log []byte) replayed {
	var r replayed
	// Items by hash, also of documents that are not whole: a later head may want them.
	known := map[string]encodedItem{}
	for at := 0; at < len(log); {
		body, rest, torn, ok := cutRecord(log[at:])
		if !ok {
			next := nextRecord(log, at+1)
			if torn && next < 0 {
				break // the tail, never acknowledged
			}
			if next < 0 {
				// Zeros or rubbish up to the end: a file system that grew the file before its content was there.
				if len(bytes.Trim(log[at:], "\x00")) > 0 {
					r.damage = append(r.damage, fmt.Sprintf("%d bytes at the end, from offset %d, are no record", len(log)-at, at))
				}
				break
			}
			r.damage = append(r.damage, fmt.Sprintf("%d bytes at offset %d are no record", next-at, at))
			at = next
			continue
		}
		if why := r.state.apply(body, known); why != "" {
			r.damage = append(r.damage, fmt.Sprintf("record at offset %d: %s", at, why))
		}
		at = len(log) - len(rest)
		r.good = int64(at)
	}
	r.rewrite = len(r.damage) > 0
	return r
}

// nextRecord is the offset of the next whole record, -1 if there is none.
func nextRecord(log []byte, from int) int {
	for from < len(log) {
		i := bytes.Index(log[from:], []byte(magic))
		if i < 0 {
			return -1
		}
		if _, _, _, ok := cutRecord(log[from+i:]); ok {
			return from + i
		}
		from += i + 1
	}
	return -1
}

// encodedItem is an item and its length in the log.
type encodedItem struct {
	item desired.Item
	raw  []byte
}

// apply applies a record, or says why it can't.
func (s *state) apply(body []byte, known map[string]encodedItem) string {
	switch body[0] {
	case typeAct:
		var a act
		if err := json.Unmarshal(body[1:], &a); err != nil || a.ID == "" || a.Seq == 0 {
			return "not an act"
		}
		if a.Seq >= s.acts[a.ID].Seq {
			s.note(a)
		}
		return ""
	case typeDocument:
	default:
		return fmt.Sprintf("unknown type %q", body[0])
	}
	rawHead, rest, ok := cutBytes(body[1:])
	if !ok {
		return "cut head"
	}
	head, err := desired.DecodeHead(rawHead)
	if err != nil {
		return err.Error()
	}
	why := ""
	for len(rest) > 0 {
		var raw []byte
		if raw, rest, ok = cutBytes(rest); !ok {
			why = "cut item"
			break
		}
		it, err := desired.DecodeItem(raw)
		if err != nil {
			why = err.Error()
			continue
		}
		known[desired.Hash(raw)] = encodedItem{it, raw}
	}
	if s.has && head.Gen < s.doc.Head.Gen {
		return fmt.Sprintf("generation %d after %d", head.Gen, s.doc.Head.Gen)
	}
	items := make(map[desired.Ref]desired.Item, len(head.Items))
	changed := make(map[desired.Ref][]byte, len(head.Items))
	for ref, hash := range head.Items {
		it, ok := known[hash]
		if !ok || it.item.Ref() != ref {
			return fmt.Sprintf("generation %d left out: item %s is not there %s", head.Gen, ref, why)
		}
		items[ref] = it.item
		changed[ref] = it.raw
	}
	s.accept(head, items, len(rawHead), changed)
	return ""
}
