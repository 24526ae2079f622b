package site

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/jsm.go"
	"github.com/nats-io/jsm.go/api"
	"github.com/nats-io/jsm.go/backup"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"shoal/subjects"
)

// StreamCopy is a stream as it was copied into a directory.
type StreamCopy struct {
	Name        string
	Messages    uint64
	First, Last uint64
	LastTime    time.Time
}

// precious are the streams that nothing else can bring back.
func precious(table []jetstream.StreamConfig) []string {
	var out []string
	for _, c := range table {
		if c.Storage == jetstream.FileStorage && c.PersistMode != jetstream.AsyncPersistMode {
			out = append(out, c.Name)
		}
	}
	return out
}

// Snapshot copies the precious streams into directories below dir, each under the stream's name, while they are written. Each is
// what it was at one moment; the journal is copied last, so that nothing in it is newer than it.
func (s *Site) Snapshot(ctx context.Context, dir string) ([]StreamCopy, error) {
	m, err := jsm.New(s.conn)
	if err != nil {
		return nil, fmt.Errorf("copy streams: %w", err)
	}
	names := precious(s.table)
	slices.SortStableFunc(names, func(a, b string) int {
		return boolInt(a == subjects.JournalStream) - boolInt(b == subjects.JournalStream)
	})
	var out []StreamCopy
	for _, name := range names {
		c, err := snapshot(ctx, m, name, filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("copy stream %s: %w", name, err)
		}
		out = append(out, c)
	}
	return out, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func snapshot(ctx context.Context, m *jsm.Manager, name, dir string) (StreamCopy, error) {
	st, err := m.LoadStream(name)
	if err != nil {
		return StreamCopy{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return StreamCopy{}, err
	}
	if _, err := st.SnapshotToDirectory(ctx, dir); err != nil {
		return StreamCopy{}, err
	}
	// The copy ends with whatever ends it; only the archive itself tells whether it is whole.
	info, err := backup.Info(dir)
	if err != nil {
		return StreamCopy{}, fmt.Errorf("read the copy back: %w", err)
	}
	return StreamCopy{Name: name, Messages: info.Messages, First: info.FirstSeq, Last: max(info.LastSeq, info.Declared.LastSeq), LastTime: info.LastTime}, nil
}

// restoreStreams makes the streams of a directory that Snapshot has filled. Those that are there are never touched.
func (s *Site) restoreStreams(ctx context.Context, dir string, replicas int) error {
	m, err := jsm.New(s.conn)
	if err != nil {
		return fmt.Errorf("restore streams: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("restore streams: %w", err)
	}
	for _, e := range entries {
		known, err := m.IsKnownStream(e.Name())
		if err != nil {
			return fmt.Errorf("restore stream %s: %w", e.Name(), err)
		}
		if known {
			return fmt.Errorf("restore stream %s: %s has one already: restore into an empty one", e.Name(), s.where())
		}
	}
	for _, e := range entries {
		sub := filepath.Join(dir, e.Name())
		cfg, err := copiedConfig(sub)
		if err != nil {
			return fmt.Errorf("restore stream %s: %w", e.Name(), err)
		}
		cfg.Replicas, cfg.Placement = replicas, nil
		cfg.DenyPurge = false // an old journal's, which can't be taken back otherwise
		if _, _, err := m.RestoreSnapshotFromDirectory(ctx, e.Name(), sub, jsm.RestoreConfiguration(cfg)); err != nil {
			return fmt.Errorf("restore stream %s: %w", e.Name(), err)
		}
	}
	return nil
}

func copiedConfig(dir string) (api.StreamConfig, error) {
	var meta struct {
		Config api.StreamConfig `json:"config"`
	}
	b, err := os.ReadFile(filepath.Join(dir, jsm.SnapshotMetaFile))
	if err != nil {
		return meta.Config, err
	}
	if err := json.Unmarshal(b, &meta); err != nil {
		return meta.Config, fmt.Errorf("read its configuration: %w", err)
	}
	return meta.Config, nil
}

// CopiedMessage is a message of a copied stream.
type CopiedMessage struct {
	Subject string
	Seq     uint64
	At      time.Time
	Header  nats.Header
	Data    []byte
}

// Extend writes a copied stream anew into another directory, with more messages behind the last, the first of which may have any
// higher sequence: the only way to let a stream's sequences make a leap. Each message is shown to look first; more makes
// those that are added, one at least, from all that it has seen.
func Extend(from, to string, look func(CopiedMessage) error, more func() ([]CopiedMessage, error)) error {
	fail := func(err error) error { return fmt.Errorf("extend copied stream %s: %w", from, err) }
	if err := eachCopied(from, look); err != nil {
		return fail(err)
	}
	added, err := more()
	if err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return fail(err)
	}
	meta, err := os.ReadFile(filepath.Join(from, jsm.SnapshotMetaFile))
	if err != nil {
		return fail(err)
	}
	if err := os.WriteFile(filepath.Join(to, jsm.SnapshotMetaFile), meta, 0o600); err != nil {
		return fail(err)
	}
	in, err := os.Open(filepath.Join(from, jsm.SnapshotDataFile))
	if err != nil {
		return fail(err)
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(to, jsm.SnapshotDataFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	err = extend(in, out, added)
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return fail(err)
	}
	if _, err := backup.Verify(to); err != nil {
		return fail(err)
	}
	return nil
}

func extend(in io.Reader, out io.Writer, added []CopiedMessage) error {
	d, e := backup.NewDecoder(in), backup.NewEncoder(out)
	for {
		item, err := d.Next()
		if errors.Is(err, io.EOF) {
			return e.Close()
		}
		if err != nil {
			return err
		}
		switch x := item.(type) {
		case *backup.State:
			st := x.State
			if st.Consumers > 0 {
				return errors.New("it was copied with its consumers")
			}
			for _, m := range added {
				if m.Seq <= st.LastSeq {
					return fmt.Errorf("sequence %d is not above its last, %d", m.Seq, st.LastSeq)
				}
				if st.Msgs == 0 {
					st.FirstSeq, st.FirstTime = m.Seq, m.At
				}
				st.Msgs, st.LastSeq, st.LastTime = st.Msgs+1, m.Seq, m.At
				st.Bytes += m.size()
			}
			err = e.WriteState(x.Ts, st)
		case *backup.Message:
			err = e.WriteMessage(x)
		case backup.End:
			for _, m := range added {
				if err := m.write(e); err != nil {
					return err
				}
			}
			err = e.WriteEnd()
		}
		if err != nil {
			return err
		}
	}
}

// size is about what a message takes in a stream.
func (m CopiedMessage) size() uint64 {
	return uint64(len(rawHeader(m.Header)) + len(m.Data) + len(m.Subject) + 64)
}

func (m CopiedMessage) write(e *backup.Encoder) error {
	header := rawHeader(m.Header)
	return e.WriteMessage(&backup.Message{
		Subject: m.Subject, Seq: m.Seq, Ts: m.At.UnixNano(), HdrSize: int64(len(header)), PayloadSize: int64(len(m.Data)),
		Body: io.MultiReader(bytes.NewReader(header), bytes.NewReader(m.Data)),
	})
}

// rawHeader is a header as NATS stores it.
func rawHeader(h nats.Header) []byte {
	if len(h) == 0 {
		return nil
	}
	var b bytes.Buffer
	b.WriteString("NATS/1.0\r\n")
	for k, values := range h {
		for _, v := range values {
			fmt.Fprintf(&b, "%s: %s\r\n", k, v)
		}
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// eachCopied shows every message of a copied stream.
func eachCopied(dir string, look func(CopiedMessage) error) error {
	f, err := os.Open(filepath.Join(dir, jsm.SnapshotDataFile))
	if err != nil {
		return err
	}
	defer f.Close()
	d := backup.NewDecoder(f)
	for {
		item, err := d.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		x, ok := item.(*backup.Message)
		if !ok {
			continue
		}
		b, err := io.ReadAll(x.Body)
		if err != nil {
			return err
		}
		m := CopiedMessage{Subject: x.Subject, Seq: x.Seq, At: time.Unix(0, x.Ts).UTC(), Data: b[x.HdrSize:]}
		if x.HdrSize > 0 {
			if m.Header, err = nats.DecodeHeadersMsg(b[:x.HdrSize]); err != nil {
				return fmt.Errorf("read the header of message %d: %w", x.Seq, err)
			}
		}
		if err := look(m); err != nil {
			return err
		}
	}
}

// NewCopy makes a copy of a stream that never was: with a configuration and one message, whose sequence may be any.
func NewCopy(dir string, cfg jetstream.StreamConfig, only CopiedMessage) error {
	fail := func(err error) error { return fmt.Errorf("make copied stream %s: %w", dir, err) }
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	st := api.StreamState{Msgs: 1, FirstSeq: only.Seq, LastSeq: only.Seq, FirstTime: only.At, LastTime: only.At, Bytes: only.size()}
	meta, err := json.MarshalIndent(map[string]any{"config": cfg, "state": st}, "", "  ")
	if err != nil {
		return fail(err)
	}
	if err := os.WriteFile(filepath.Join(dir, jsm.SnapshotMetaFile), meta, 0o600); err != nil {
		return fail(err)
	}
	out, err := os.OpenFile(filepath.Join(dir, jsm.SnapshotDataFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	e := backup.NewEncoder(out)
	err = errors.Join(e.WriteState(only.At.UnixNano(), st), only.write(e), e.WriteEnd(), e.Close(), out.Sync(), out.Close())
	if err != nil {
		return fail(err)
	}
	if _, err := backup.Verify(dir); err != nil {
		return fail(err)
	}
	return nil
}
