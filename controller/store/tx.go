package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-memdb"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/subjects"
)

// tx is a resource.Tx on a write transaction of memdb, which several of them share one after the other. Since memdb has
// no savepoints, it keeps a log to undo itself with.
type tx struct {
	view
	request resource.Request
	answer  json.RawMessage
	now     time.Time
	random  *rand.ChaCha8
	// changes are by resource, in the order of the first touch.
	changes []Change
	index   map[changeKey]int
	undo    []undo
	ended   bool
}

type changeKey struct {
	kind resource.Kind
	id   string
}

// undo puts one row back: old, or nothing in place of new.
type undo struct {
	table    string
	old, new any
}

// begin makes a transaction that will be stored with the sequence seq.
func begin(txn *memdb.Txn, seq uint64, observed observedView, req resource.Request, now time.Time, seed [32]byte) *tx {
	return &tx{
		view: view{seq: seq, txn: txn, observed: observed}, request: req, now: now, random: rand.NewChaCha8(seed),
	}
}

// run calls the function; a panic of its becomes an error.
func (t *tx) run(fn func(resource.Tx) error) (err error) {
	defer func() {
		t.ended = true
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
		if err != nil {
			if undoErr := t.rollback(); undoErr != nil {
				err = fmt.Errorf("%w (and its trace could not be removed: %w)", err, undoErr)
			}
		}
	}()
	return fn(t)
}

// panicError is a function's panic.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// As makes a panic an internal error for whoever asks for the code.
func (e *panicError) As(target any) bool {
	p, ok := target.(**resource.Error)
	if ok {
		*p = &resource.Error{Code: resource.CodeInternal, Message: "the controller made a mistake: " + e.Error(), Remedy: "read the controller's log of this moment"}
	}
	return ok
}

// Now implements resource.Tx.
func (t *tx) Now() time.Time { return t.now }

// Request implements resource.Tx.
func (t *tx) Request() resource.Request { return t.request }

// Answer implements resource.Tx.
func (t *tx) Answer(reply json.RawMessage) { t.answer = reply }

// Uint64 implements resource.Tx.
func (t *tx) Uint64() uint64 { return t.random.Uint64() }

// NewID implements resource.Tx.
func (t *tx) NewID() string { return NewID(t.random.Uint64) }

// NewID makes a UUID of random bits.
func NewID(random func() uint64) string {
	var u uuid.UUID
	binary.BigEndian.PutUint64(u[:8], random())
	binary.BigEndian.PutUint64(u[8:], random())
	u[6] = u[6]&0x0f | 0x40 // version 4
	u[8] = u[8]&0x3f | 0x80 // RFC 9562
	return u.String()
}

// Put implements resource.Tx.
func (t *tx) Put(r resource.Resource) error {
	if err := t.open(); err != nil {
		return err
	}
	m, kind := r.Base(), r.Kind()
	if !subjects.ValidToken(m.ID) {
		return resource.Invalid("id", "%q is not 1 to 64 characters of A-Z, a-z, 0-9, _ and -", m.ID)
	}
	if err := r.Validate(); err != nil {
		return err
	}
	for _, ref := range r.Refs() {
		if ref.Mode == resource.Weak || (ref.Kind == kind && ref.ID == m.ID) || t.Get(ref.Kind, ref.ID) != nil {
			continue
		}
		return &resource.Error{
			Code: resource.CodeNotFound, Field: ref.Field, Message: fmt.Sprintf("no %s has the id %q", ref.Kind, ref.ID),
			Remedy: fmt.Sprintf("see shoalctl %s list", ref.Kind),
		}
	}
	keys := r.Unique()
	for _, key := range keys {
		if h := t.Holder(key); h != nil && (h.Kind() != kind || h.Base().ID != m.ID) {
			return taken(key, h)
		}
	}
	old := t.Get(kind, m.ID)
	if old == r {
		return fmt.Errorf("put %s %s: it is the stored resource itself: Clone it before a change", kind, m.ID)
	}
	m.Created = t.now
	if old != nil {
		m.Created = old.Base().Created
	}
	m.Updated, m.Rev, m.Cause = t.now, t.seq, t.request.ID
	if old != nil {
		for _, key := range old.Unique() {
			if !slices.Contains(keys, key) {
				if err := t.remove(tableHolders, &holder{key, kind, m.ID}); err != nil {
					return err
				}
			}
		}
	}
	for _, key := range keys {
		if old == nil || !slices.Contains(old.Unique(), key) {
			if err := t.insert(tableHolders, nil, &holder{key, kind, m.ID}); err != nil {
				return err
			}
		}
	}
	if err := t.insert(string(kind), old, r); err != nil {
		return err
	}
	t.changed(kind, m.ID, old, r)
	return nil
}

// maxUsers is how many users of a resource are named when it can't be deleted.
const maxUsers = 5

// Delete implements resource.Tx.
func (t *tx) Delete(kind resource.Kind, id string) error {
	if err := t.open(); err != nil {
		return err
	}
	old := t.Get(kind, id)
	if old == nil {
		return resource.NotFound(kind, id)
	}
	if err := t.unused(old); err != nil {
		return err
	}
	for _, key := range old.Unique() {
		if err := t.remove(tableHolders, &holder{key, kind, id}); err != nil {
			return err
		}
	}
	if err := t.remove(string(kind), old); err != nil {
		return err
	}
	t.changed(kind, id, old, nil)
	return nil
}

// unused says who still names a resource.
func (t *tx) unused(r resource.Resource) error {
	kind, id := r.Kind(), r.Base().ID
	var users []resource.Reason
	more := 0
	for _, from := range resource.Kinds() {
		for user := range t.Referrers(from, kind, id) {
			field := ""
			for _, ref := range user.Refs() {
				if ref.Kind == kind && ref.ID == id && ref.Mode != resource.Weak && (from != kind || user.Base().ID != id) {
					field = ref.Field
				}
			}
			switch {
			case field == "":
			case len(users) == maxUsers:
				more++
			default:
				users = append(users, resource.Reason{Kind: from, ID: user.Base().ID, Name: user.Base().Name, Why: "names it as " + field})
			}
		}
	}
	if len(users) == 0 {
		return nil
	}
	message := fmt.Sprintf("%s %s is still in use", kind, r.Base().Name)
	if more > 0 {
		message += fmt.Sprintf(" by %d, the first %d of which are", len(users)+more, maxUsers)
	}
	return &resource.Error{
		Code: resource.CodeInUse, Field: string(kind), Message: message, Remedy: "delete or detach them first, or delete with --cascade", Reasons: users,
	}
}

// taken says in words what a unique key is and who has it.
func taken(key string, h resource.Resource) *resource.Error {
	field, what := keyMeaning(key)
	// By whom stands in a place of its own: not everybody may know.
	return resource.Conflict(field, "%s is taken", what).Because(h, "has the id %s", h.Base().ID)
}

func (t *tx) open() error {
	if t.ended {
		return fmt.Errorf("change resources for request %s: the transaction has ended", t.request.ID)
	}
	return nil
}

func (t *tx) insert(table string, old, row any) error {
	if err := t.txn.Insert(table, row); err != nil {
		return fmt.Errorf("insert into table %s: %w", table, err)
	}
	t.undo = append(t.undo, undo{table, old, row})
	return nil
}

func (t *tx) remove(table string, row any) error {
	if err := t.txn.Delete(table, row); err != nil {
		return fmt.Errorf("delete from table %s: %w", table, err)
	}
	t.undo = append(t.undo, undo{table, row, nil})
	return nil
}

// rollback removes every trace.
func (t *tx) rollback() error {
	for _, u := range slices.Backward(t.undo) {
		var err error
		if u.old != nil {
			err = t.txn.Insert(u.table, u.old)
		} else {
			err = t.txn.Delete(u.table, u.new)
		}
		if err != nil {
			return fmt.Errorf("undo in table %s: %w", u.table, err)
		}
	}
	t.undo, t.changes, t.index = nil, nil, nil
	return nil
}

// changed notes a change. A resource that is changed several times has one.
func (t *tx) changed(kind resource.Kind, id string, old, now resource.Resource) {
	if t.index == nil {
		t.index = map[changeKey]int{}
	}
	k := changeKey{kind, id}
	if i, ok := t.index[k]; ok {
		t.changes[i].New = now
		return
	}
	t.index[k] = len(t.changes)
	t.changes = append(t.changes, Change{Kind: kind, ID: id, Old: old, New: now})
}

// encode makes the journal's entry; nil if nothing has changed.
func (t *tx) encode() (Entry, journal.Encoded, error) {
	changes := slices.DeleteFunc(t.changes, func(c Change) bool { return c.Old == nil && c.New == nil })
	if len(changes) == 0 && t.answer == nil {
		return Entry{}, nil, nil
	}
	e := journal.Entry{Request: t.request, At: t.now, Changes: make([]journal.Change, len(changes)), Reply: t.answer}
	for i := range changes {
		c := &changes[i]
		if c.New != nil {
			b, err := encodeResource(c.New)
			if err != nil {
				return Entry{}, nil, fmt.Errorf("encode %s %s: %w", c.Kind, c.ID, err)
			}
			if len(b) > maxResource {
				return Entry{}, nil, resource.Invalid(string(c.Kind), "%s is %d bytes long, at most %d are allowed", c.New.Base().Name, len(b), maxResource)
			}
			c.encoded = b
		}
		e.Changes[i] = journal.Change{Kind: c.Kind, ID: c.ID, Value: c.encoded}
	}
	encoded, err := e.Encode()
	return Entry{Request: t.request, At: t.now, Changes: changes}, encoded, err
}

// maxResource is how long the JSON of one resource may be: it has to fit under a key of the projection.
const maxResource = 256 << 10

func encodeResource(r resource.Resource) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(512)
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// apply puts a committed entry into a transaction of memdb as it is. The changes of one entry may be in any order.
func apply(txn *memdb.Txn, changes []Change) error {
	v := view{txn: txn}
	for i := range changes {
		c := &changes[i]
		c.Old = v.Get(c.Kind, c.ID)
		if c.Old == nil {
			continue
		}
		for _, key := range c.Old.Unique() {
			if _, err := txn.DeleteAll(tableHolders, indexID, key); err != nil {
				return fmt.Errorf("free key %s: %w", key, err)
			}
		}
		if c.New == nil {
			if err := txn.Delete(string(c.Kind), c.Old); err != nil {
				return fmt.Errorf("delete %s %s: %w", c.Kind, c.ID, err)
			}
		}
	}
	for _, c := range changes {
		if c.New == nil {
			continue
		}
		if err := txn.Insert(string(c.Kind), c.New); err != nil {
			return fmt.Errorf("insert %s %s: %w", c.Kind, c.ID, err)
		}
		for _, key := range c.New.Unique() {
			if err := txn.Insert(tableHolders, &holder{key, c.Kind, c.ID}); err != nil {
				return fmt.Errorf("take key %s: %w", key, err)
			}
		}
	}
	return nil
}

// decodeEntry makes resources of a journal's entry.
func decodeEntry(e journal.Entry) (Entry, error) {
	out := Entry{Request: e.Request, At: e.At, Changes: make([]Change, len(e.Changes)), Error: e.Error, More: e.More}
	for i, c := range e.Changes {
		out.Changes[i] = Change{Kind: c.Kind, ID: c.ID, encoded: c.Value}
		if c.Value == nil {
			continue
		}
		r, err := decodeResource(c.Kind, c.ID, c.Value)
		if err != nil {
			return Entry{}, fmt.Errorf("request %s: %w", e.Request.ID, err)
		}
		out.Changes[i].New = r
	}
	return out, nil
}

func decodeResource(kind resource.Kind, id string, b []byte) (resource.Resource, error) {
	r, err := resource.Decode(kind, b)
	if err != nil {
		return nil, err
	}
	if got := r.Base().ID; got != id {
		return nil, fmt.Errorf("decode %s %s: it bears the id %q", kind, strings.ToValidUTF8(id, "?"), got)
	}
	return r, nil
}
