// Package ledger keeps on disk what an agent must not forget: the last document that it accepted, and which one-shot acts
// it began and ended. With the network gone, or after a cold boot without it, the agent lives by its ledger.
//
// # What it guarantees
//
//   - What Accept, Begin and End took is durable before they return. A crash at any moment leaves the document before or
//     the document after, whole: the items' hashes are those of the head.
//   - Generations never go back, a generation never changes its contents, and a document of another host is refused.
//   - Damage never looks like an empty document. What is damaged is left out, the newest document whose every item can still be
//     read is used, Damage says loudly what happened, and the damaged file is kept beside. No document at all means
//     "no opinion" to the engine, which then removes nothing.
//   - One process at a time: Open fails with ErrLocked while another has the directory.
//
// It leaves to agent/link to assemble documents, and to agent/engine to act on them.
//
// # Form
//
// An append-only log of records with CRC: see record.go. Accept writes one record with the head and the items that changed,
// and syncs once, so its cost is that of the change and not of the document: a security group of 10,000 addresses
// (160 KB) with one member changed takes 160 KB and one sync, whatever else the host has. When the dead part of
// the log is larger than the live part and 8 MiB, the log is written anew beside and swapped in by rename; the old one stays as
// the spare until the next time.
package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"shoal/agent/host"
	"shoal/desired"
)

// The refusals of Accept. They wrap details of what was wrong.
var (
	// ErrOlder refuses a generation that is lower than the accepted one.
	ErrOlder = errors.New("older generation than the accepted one")
	// ErrSameGeneration refuses other contents under the accepted generation.
	ErrSameGeneration = errors.New("other contents under the accepted generation")
	// ErrWrongHost refuses a document for another host than the accepted one's.
	ErrWrongHost = errors.New("document of another host")
	// ErrInvalid refuses a document that is not whole: items and head don't match.
	ErrInvalid = errors.New("items and head don't match")
)

// ErrLocked says that another process uses the directory.
var ErrLocked = errors.New("another agent uses this directory")

// ErrActBegun refuses to begin an act that was begun before, or one that a newer act has overtaken.
var ErrActBegun = errors.New("act was begun before")

// The files in the ledger's directory.
const (
	logFile     = "ledger.log"   // the log
	spareFile   = "ledger.spare" // the log before the last compaction
	newFile     = "ledger.new"   // a compaction under way
	damagedFile = "ledger.damaged-"
	lockFile    = "lock"
)

const (
	// compactSlack is how much dead log is never worth a compaction.
	compactSlack = 8 << 20
	// maxActs is how many acts of domains that are not in the document are remembered.
	maxActs = 10_000
)

// Ledger is an open ledger. It is safe for use by several goroutines.
type Ledger struct {
	dir    string
	lock   *os.File
	damage error
	// crash, in tests, ends the process's life before a step; slack is compactSlack but in tests.
	crash func(step string) error
	slack int64

	mu   sync.Mutex
	file *os.File
	// size is the log's good length, live what a compacted one would take; broken says that its end can't be trusted.
	size, live int64
	broken     bool
	state      state
}

// Open opens the ledger in dir, and makes it if there is none. Look at Damage afterwards.
func Open(dir string) (*Ledger, error) {
	return open(dir, compactSlack, func(string) error { return nil })
}

func open(dir string, slack int64, crash func(step string) error) (_ *Ledger, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	l := &Ledger{dir: dir, slack: slack, crash: crash}
	if err := l.takeLock(); err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			_ = l.Close()
		}
	}()
	if err := l.recover(); err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", dir, err)
	}
	return l, nil
}

// takeLock keeps other processes out for as long as the file is open: the kernel gives it up with the process.
func (l *Ledger) takeLock() error {
	f, err := os.OpenFile(filepath.Join(l.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock: %w", err)
		}
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0)
		return fmt.Errorf("%w: process %s; stop it first", ErrLocked, strings.TrimSpace(string(pid[:n])))
	}
	l.lock = f
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// recover reads the log, or the spare where the log has no document, and makes the log fit to be appended to.
func (l *Ledger) recover() error {
	path := filepath.Join(l.dir, logFile)
	raw, err := os.ReadFile(path)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	got := replay(raw)
	spare, err := os.ReadFile(filepath.Join(l.dir, spareFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if !got.state.has && len(spare) > 0 {
		// A crash between the two renames of a compaction leaves the spare only: it is the whole log then.
		if old := replay(spare); old.state.has {
			if !missing {
				got.damage = append(got.damage, fmt.Sprintf("no document in %s: generation %d of %s is used", logFile, old.state.doc.Head.Gen, spareFile))
			}
			old.state.merge(got.state)
			got.state, got.rewrite = old.state, true
			got.damage = append(got.damage, old.damage...)
		}
	}
	l.state = got.state
	if len(got.damage) > 0 {
		aside := filepath.Join(l.dir, damagedFile+time.Now().UTC().Format("20060102T150405.000000000"))
		l.damage = fmt.Errorf("ledger %s is damaged: %s; the damaged file is kept as %s", l.dir, strings.Join(got.damage, "; "), aside)
		if !missing {
			// A copy, not a rename: the log must not be missing even for a moment.
			if err := host.WriteFile(aside, raw, 0o600); err != nil {
				return fmt.Errorf("keep damaged ledger: %w", err)
			}
		}
	}
	l.live = l.state.size()
	if missing || got.rewrite || len(got.damage) > 0 {
		// The spare is not replaced by a log that is worse.
		return l.compact(false)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	l.file, l.size = f, got.good
	if int64(len(raw)) > got.good {
		// What a crash cut off: never acknowledged, so nothing is lost.
		if err := f.Truncate(got.good); err != nil {
			return err
		}
		return f.Sync()
	}
	return nil
}

// Close gives the directory free. What was accepted is on disk already.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	if l.file != nil {
		errs = append(errs, l.file.Close())
		l.file = nil
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
		l.lock = nil
	}
	return errors.Join(errs...)
}

// Damage says what was found damaged when the ledger was opened, and what is used instead; nil if all was well. A person
// should look at the disk. A last record that a crash cut off is no damage: nobody was told that it was accepted.
func (l *Ledger) Damage() error { return l.damage }

// Document is the accepted document. Without one there is none to go by, which is not the same as an empty one.
func (l *Ledger) Document() (desired.Document, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.state.has {
		return desired.Document{}, false
	}
	return clone(l.state.doc), true
}

// Accept makes doc the accepted document, durably. Accepting the accepted one again is fine and costs nothing.
func (l *Ledger) Accept(doc desired.Document) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed, err := l.check(doc)
	if err != nil {
		return fmt.Errorf("accept generation %d of %q: %w", doc.Head.Gen, doc.Head.Host, err)
	}
	if changed == nil {
		return nil
	}
	head, err := doc.Head.Encode()
	if err != nil {
		return fmt.Errorf("accept generation %d: encode head: %w", doc.Head.Gen, err)
	}
	if err := l.append(documentRecord(head, changed)); err != nil {
		return fmt.Errorf("accept generation %d: %w", doc.Head.Gen, err)
	}
	l.state.accept(doc.Head, doc.Items, len(head), changed)
	l.live = l.state.size()
	return nil
}

// check gives the encoded items of doc that the log does not have yet, nil if doc is the accepted document.
func (l *Ledger) check(doc desired.Document) (map[desired.Ref][]byte, error) {
	head, now := doc.Head, l.state.doc.Head
	if head.Host == "" || head.Gen == 0 {
		return nil, fmt.Errorf("%w: host and gen must be set", ErrInvalid)
	}
	if l.state.has {
		switch {
		case head.Host != now.Host:
			return nil, fmt.Errorf("%w: the accepted one is of %q", ErrWrongHost, now.Host)
		case head.Gen < now.Gen:
			return nil, fmt.Errorf("%w: that is %d", ErrOlder, now.Gen)
		case head.Gen == now.Gen && !sameHead(head, now):
			return nil, ErrSameGeneration
		}
	}
	if len(head.Items) != len(doc.Items) {
		return nil, fmt.Errorf("%w: the head lists %d items, %d are there", ErrInvalid, len(head.Items), len(doc.Items))
	}
	changed := map[desired.Ref][]byte{}
	for ref, hash := range head.Items {
		it, ok := doc.Items[ref]
		if !ok || it.Ref() != ref {
			return nil, fmt.Errorf("%w: item %s is missing", ErrInvalid, ref)
		}
		if old, ok := l.state.doc.Items[ref]; ok && now.Items[ref] == hash && sameItem(old, it) {
			continue
		}
		b, err := it.Encode()
		if err != nil {
			return nil, fmt.Errorf("%w: encode %s: %w", ErrInvalid, ref, err)
		}
		if got := desired.Hash(b); got != hash {
			return nil, fmt.Errorf("%w: item %s has hash %s, the head says %s", ErrInvalid, ref, got, hash)
		}
		changed[ref] = b
	}
	if l.state.has && head.Gen == now.Gen {
		return nil, nil
	}
	return changed, nil
}

// append makes a record durable. A log whose end can't be trusted is written anew first.
func (l *Ledger) append(record []byte) error {
	if l.file == nil {
		return os.ErrClosed
	}
	if l.broken || l.size+int64(len(record)) > 2*l.live+l.slack {
		if err := l.compact(true); err != nil {
			return err
		}
	}
	if err := l.crash("before write"); err != nil {
		return err
	}
	// From here on anything may be at the end of the log. After a failed sync the kernel may have dropped the pages and
	// yet answer the next one with success, so a failure is never tried again in place.
	l.broken = true
	half := len(record) / 2
	if _, err := l.file.WriteAt(record[:half], l.size); err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	if err := l.crash("within write"); err != nil {
		return err
	}
	if _, err := l.file.WriteAt(record[half:], l.size+int64(half)); err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	if err := l.crash("before sync"); err != nil {
		return err
	}
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("sync ledger: %w", err)
	}
	l.broken = false
	l.size += int64(len(record))
	return nil
}

// compact writes the state as a new log and swaps it in. With keep the old log becomes the spare.
func (l *Ledger) compact(keep bool) (err error) {
	tmp, path := filepath.Join(l.dir, newFile), filepath.Join(l.dir, logFile)
	content, err := l.state.encode()
	if err != nil {
		return fmt.Errorf("compact ledger: %w", err)
	}
	if err := l.crash("before compaction"); err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("compact ledger: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if _, err := f.Write(content); err != nil {
		return fmt.Errorf("compact ledger: %w", err)
	}
	if err := l.crash("within compaction"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("compact ledger: %w", err)
	}
	l.broken = true // until the swap is done
	if keep {
		if err := l.crash("before spare"); err != nil {
			return err
		}
		if err := os.Rename(path, filepath.Join(l.dir, spareFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("compact ledger: %w", err)
		}
	}
	if err := l.crash("before swap"); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("compact ledger: %w", err)
	}
	if err := l.crash("before directory sync"); err != nil {
		return err
	}
	if err := host.SyncDir(l.dir); err != nil {
		return fmt.Errorf("compact ledger: %w", err)
	}
	if l.file != nil {
		_ = l.file.Close() // all of it is in the new one
	}
	l.file, l.size, l.live, l.broken = f, int64(len(content)), int64(len(content)), false
	return nil
}

// Last is the last act of a domain that was begun: its number, whether it ended, and how. An act that was begun and has not
// ended after a restart has an unknown outcome. 0 means that there was none.
func (l *Ledger) Last(id string) (seq uint64, done bool, errText string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.state.acts[id]
	return a.Seq, a.Done, a.Err
}

// Begin takes note, durably, that act seq of a domain is about to be done. It refuses an act that is not newer than the last:
// whoever gets nil here, and nobody else ever, may do the act.
func (l *Ledger) Begin(id string, seq uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id == "" || seq == 0 {
		return fmt.Errorf("begin act %d of %q: id and seq must be set", seq, id)
	}
	if last := l.state.acts[id]; seq <= last.Seq {
		return fmt.Errorf("begin act %d of %s: %w: the last is %d", seq, id, ErrActBegun, last.Seq)
	}
	if err := l.act(act{ID: id, Seq: seq}); err != nil {
		return fmt.Errorf("begin act %d of %s: %w", seq, id, err)
	}
	return nil
}

// End takes note, durably, of how the act that was begun last came out; an empty errText means well.
func (l *Ledger) End(id string, seq uint64, errText string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last := l.state.acts[id]; last.Seq != seq || seq == 0 {
		return fmt.Errorf("end act %d of %s: the last begun is %d", seq, id, last.Seq)
	}
	if err := l.act(act{ID: id, Seq: seq, Done: true, Err: errText}); err != nil {
		return fmt.Errorf("end act %d of %s: %w", seq, id, err)
	}
	return nil
}

func (l *Ledger) act(a act) error {
	record, err := actRecord(a)
	if err != nil {
		return err
	}
	if err := l.append(record); err != nil {
		return err
	}
	l.state.note(a)
	l.live = l.state.size()
	return nil
}

// sameHead compares what two heads say.
func sameHead(a, b desired.Head) bool {
	return a.Host == b.Host && a.Gen == b.Gen && a.Shrink == b.Shrink && maps.Equal(a.Items, b.Items) && maps.Equal(a.Policy, b.Policy)
}

// sameItem compares all that an item's hash is taken over.
func sameItem(a, b desired.Item) bool {
	return a.Kind == b.Kind && a.ID == b.ID && a.Rev == b.Rev && a.Cause == b.Cause && slices.Equal(a.Needs, b.Needs) && bytes.Equal(a.Spec, b.Spec)
}

// Read is the accepted document of a ledger that a running agent may have open; ok is false where there is none. It changes nothing, and
// leaves damage for Open to speak of.
func Read(dir string) (doc desired.Document, ok bool, err error) {
	// While the log is compacted it may be missing for a moment, and is the spare then.
	for _, name := range []string{logFile, spareFile} {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return desired.Document{}, false, fmt.Errorf("read ledger: %w", err)
		}
		if got := replay(raw); got.state.has {
			return got.state.doc, true, nil
		}
	}
	return desired.Document{}, false, nil
}
