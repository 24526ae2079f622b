package history

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"shoal/controller/file"
	"shoal/controller/journal"
	"shoal/controller/store"
)

// Outcome is how a call ended.
type Outcome string

// The outcomes.
const (
	Changed Outcome = "changed" // it changed something
	Read    Outcome = "read"    // it changed nothing and was not meant to
	Refused Outcome = "refused"
)

func outcomes() []Outcome { return []Outcome{Changed, Read, Refused} }

func outcomeOf(changes int, refusal string) Outcome {
	switch {
	case refusal != "":
		return Refused
	case changes == 0:
		return Read
	default:
		return Changed
	}
}

// segmentRows is how many rows a segment has at least; it ends with a message of the journal.
const segmentRows = 1 << 16

// rows are entries of the journal as columns.
type rows struct {
	// seq is the message, sub the place in its group, at the transaction's time in Unix nanoseconds.
	seq []uint64
	sub []uint16
	at  []int64
	// account, caller, from, op are places in the lists of words; outcome in that of outcomes.
	account, caller, from, op []uint32
	outcome                   []uint8
	// request is the hash of the request's id.
	request []uint64
	// refEnd is where the row's changes end in the columns below; they begin where the row before ends.
	refEnd []uint32
	// refKind is a place in the list of kinds, refID and refName are hashes of the resource's id and name.
	refKind        []uint16
	refID, refName []uint64
}

// words are texts by their places.
type words struct {
	List  []string `json:"list"`
	place map[string]uint32
}

func (w *words) put(s string) uint32 {
	if w.place == nil {
		w.place = map[string]uint32{}
	}
	i, ok := w.place[s]
	if !ok {
		i = uint32(len(w.List)) //nolint:gosec // a segment has some 65,536 rows
		w.place[s] = i
		w.List = append(w.List, s)
	}
	return i
}

// header says what a segment holds. Its JSON is kept in memory while the segment is on the disk.
type header struct {
	// Before is the position that the segment follows, Last that of its last message.
	Before journal.Position `json:"before"`
	Last   journal.Position `json:"last"`
	Rows   int              `json:"rows"`
	Refs   int              `json:"refs"`
	// From and To are the earliest and the latest time of a row.
	From     int64    `json:"from"`
	To       int64    `json:"to"`
	Accounts words    `json:"accounts"`
	Callers  words    `json:"callers"`
	Froms    words    `json:"froms"`
	Ops      words    `json:"ops"`
	Kinds    words    `json:"kinds"`
	Columns  []column `json:"columns"`
}

// column is where a column lies behind the header.
type column struct {
	Size int    `json:"size"`
	Sum  uint32 `json:"sum"`
}

// tail are the rows that fill no segment yet.
type tail struct {
	header
	rows
}

func newTail(after journal.Position) *tail { return &tail{header: header{Before: after, Last: after}} }

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, s)
	return h.Sum64()
}

// add takes in a message. Name gives the name of a resource that is not in its change, because it was deleted.
func (t *tail) add(at journal.Position, entries []store.Entry) {
	for i, e := range entries {
		if e.Request.Op == journal.OpRestate {
			continue // said once more, so that the journal can be compacted: no change
		}
		when := e.At.UnixNano()
		if t.Rows == 0 {
			t.From, t.To = when, when
		}
		t.From, t.To = min(t.From, when), max(t.To, when)
		t.Rows++
		t.seq, t.sub, t.at = append(t.seq, at.Seq), append(t.sub, uint16(i)), append(t.at, when) //nolint:gosec // a group has at most some thousand entries
		t.account = append(t.account, t.Accounts.put(e.Request.Account))
		t.caller = append(t.caller, t.Callers.put(e.Request.Caller))
		t.from = append(t.from, t.Froms.put(e.Request.From))
		t.op = append(t.op, t.Ops.put(e.Request.Op))
		t.outcome = append(t.outcome, uint8(slices.Index(outcomes(), outcomeOf(len(e.Changes), e.Error)))) //nolint:gosec // one of three
		t.request = append(t.request, hash(e.Request.ID))
		for _, c := range e.Changes {
			named := c.New
			if named == nil {
				named = c.Old
			}
			name := uint64(0)
			if named != nil {
				name = hash(named.Base().Name)
			}
			t.refKind = append(t.refKind, uint16(t.Kinds.put(string(c.Kind)))) //nolint:gosec // there are some dozens
			t.refID, t.refName = append(t.refID, hash(c.ID)), append(t.refName, name)
		}
		t.Refs = len(t.refID)
		t.refEnd = append(t.refEnd, uint32(t.Refs)) //nolint:gosec // bounded by the segment's size
	}
	t.Last = at
}

// The columns in the order in which they lie in a file.
const (
	colSeq = iota
	colSub
	colAt
	colCaller
	colFrom
	colOp
	colOutcome
	colRequest
	colRefEnd
	colRefKind
	colRefID
	colRefName
	colAccount
	columnCount
)

const segmentMagic = "shoalix1"

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// encode gives the columns as they lie in a file.
func (r *rows) encode() [columnCount][]byte {
	var out [columnCount][]byte
	le := binary.LittleEndian
	u64 := func(list []uint64) (b []byte) {
		for _, v := range list {
			b = le.AppendUint64(b, v)
		}
		return b
	}
	u32 := func(list []uint32) (b []byte) {
		for _, v := range list {
			b = le.AppendUint32(b, v)
		}
		return b
	}
	u16 := func(list []uint16) (b []byte) {
		for _, v := range list {
			b = le.AppendUint16(b, v)
		}
		return b
	}
	out[colSeq], out[colSub], out[colRequest] = u64(r.seq), u16(r.sub), u64(r.request)
	for _, v := range r.at {
		out[colAt] = le.AppendUint64(out[colAt], uint64(v)) //nolint:gosec // there and back
	}
	out[colCaller], out[colFrom], out[colOp], out[colOutcome] = u32(r.caller), u32(r.from), u32(r.op), r.outcome
	out[colRefEnd], out[colRefKind], out[colRefID], out[colRefName] = u32(r.refEnd), u16(r.refKind), u64(r.refID), u64(r.refName)
	out[colAccount] = u32(r.account)
	return out
}

// decode puts one column in place.
func (r *rows) decode(col int, b []byte) {
	switch col {
	case colSeq:
		r.seq = decodeU64(r.seq, b)
	case colSub:
		r.sub = decodeU16(r.sub, b)
	case colAt:
		r.at = r.at[:0]
		for ; len(b) >= 8; b = b[8:] {
			r.at = append(r.at, int64(binary.LittleEndian.Uint64(b))) //nolint:gosec // there and back
		}
	case colCaller:
		r.caller = decodeU32(r.caller, b)
	case colFrom:
		r.from = decodeU32(r.from, b)
	case colOp:
		r.op = decodeU32(r.op, b)
	case colOutcome:
		r.outcome = append(r.outcome[:0], b...)
	case colRequest:
		r.request = decodeU64(r.request, b)
	case colRefEnd:
		r.refEnd = decodeU32(r.refEnd, b)
	case colRefKind:
		r.refKind = decodeU16(r.refKind, b)
	case colRefID:
		r.refID = decodeU64(r.refID, b)
	case colAccount:
		r.account = decodeU32(r.account, b)
	case colRefName:
		r.refName = decodeU64(r.refName, b)
	}
}

func decodeU64(into []uint64, b []byte) []uint64 {
	into = into[:0]
	for ; len(b) >= 8; b = b[8:] {
		into = append(into, binary.LittleEndian.Uint64(b))
	}
	return into
}

func decodeU32(into []uint32, b []byte) []uint32 {
	into = into[:0]
	for ; len(b) >= 4; b = b[4:] {
		into = append(into, binary.LittleEndian.Uint32(b))
	}
	return into
}

func decodeU16(into []uint16, b []byte) []uint16 {
	into = into[:0]
	for ; len(b) >= 2; b = b[2:] {
		into = append(into, binary.LittleEndian.Uint16(b))
	}
	return into
}

// segment is a file of rows.
type segment struct {
	header
	path string
	file *os.File
	// begin is where the first column lies.
	begin int64
}

func segmentName(last uint64) string { return fmt.Sprintf("index-%020d", last) }

var errDamaged = errors.New("the file is damaged")

// damagedError says which segment is damaged.
type damagedError struct {
	path string
	why  error
}

func (e *damagedError) Error() string {
	return fmt.Sprintf("read segment %s: %v: %v", filepath.Base(e.path), errDamaged, e.why)
}

func (e *damagedError) Unwrap() []error { return []error{errDamaged, e.why} }

// write makes a file of the rows.
func (t *tail) write(dir string) (*segment, error) {
	columns := t.encode()
	t.Columns = make([]column, columnCount)
	for i, b := range columns {
		t.Columns[i] = column{len(b), crc32.Checksum(b, castagnoli())}
	}
	head, err := json.Marshal(t.header)
	if err != nil {
		return nil, fmt.Errorf("write segment: %w", err)
	}
	path := filepath.Join(dir, segmentName(t.Last.Seq))
	err = file.Replace(path, 0o600, func(w *os.File) error {
		b := append([]byte(segmentMagic), binary.LittleEndian.AppendUint32(nil, uint32(len(head)))...) //nolint:gosec // far below
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(head, castagnoli()))
		for _, part := range append([][]byte{b, head}, columns[:]...) {
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("write segment: %w", err)
	}
	return openSegment(path)
}

// openSegment reads a segment's header; the columns are checked when they are read.
func openSegment(path string) (*segment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open segment: %w", err)
	}
	s := &segment{path: path, file: f}
	if err := s.readHeader(); err != nil {
		return nil, errors.Join(fmt.Errorf("open segment %s: %w", filepath.Base(path), err), f.Close())
	}
	return s, nil
}

func (s *segment) readHeader() error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	var start [len(segmentMagic) + 8]byte
	if _, err := s.file.ReadAt(start[:], 0); err != nil || string(start[:len(segmentMagic)]) != segmentMagic {
		return fmt.Errorf("%w: it does not begin as one", errDamaged)
	}
	n := binary.LittleEndian.Uint32(start[len(segmentMagic):])
	s.begin = int64(len(start)) + int64(n)
	if s.begin > info.Size() {
		return fmt.Errorf("%w: it is too short", errDamaged)
	}
	head := make([]byte, n)
	if _, err := s.file.ReadAt(head, int64(len(start))); err != nil || crc32.Checksum(head, castagnoli()) != binary.LittleEndian.Uint32(start[len(segmentMagic)+4:]) {
		return fmt.Errorf("%w: its header", errDamaged)
	}
	if err := json.Unmarshal(head, &s.header); err != nil || len(s.Columns) != columnCount {
		return fmt.Errorf("%w: its header", errDamaged)
	}
	end := s.begin
	for _, c := range s.Columns {
		end += int64(c.Size)
	}
	if end != info.Size() {
		return fmt.Errorf("%w: it has %d bytes instead of %d", errDamaged, info.Size(), end)
	}
	return nil
}

// scratch is what a reader of segments keeps from one to the next.
type scratch struct {
	rows
	buf []byte
}

// load reads some columns.
func (s *segment) load(into *scratch, cols ...int) error {
	at := s.begin
	for i, c := range s.Columns {
		if slices.Contains(cols, i) {
			into.buf = slices.Grow(into.buf[:0], c.Size)[:c.Size]
			if _, err := s.file.ReadAt(into.buf, at); err != nil {
				return &damagedError{s.path, err}
			}
			if crc32.Checksum(into.buf, castagnoli()) != c.Sum {
				return &damagedError{s.path, fmt.Errorf("column %d is not as it was written", i)}
			}
			into.decode(i, into.buf)
		}
		at += int64(c.Size)
	}
	return nil
}

func (h *header) spans(since, until time.Time) bool {
	return (since.IsZero() || h.To >= since.UnixNano()) && (until.IsZero() || h.From < until.UnixNano())
}
