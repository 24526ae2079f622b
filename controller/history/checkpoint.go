package history

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/s2"

	"shoal/controller/file"
	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/desired"
)

// checkpoint is a state in a file, with what was observed then.
type checkpoint struct {
	At journal.Position `json:"at"`
	// Stored is when the server stored the message, as far as is known; Taken when what is observed was looked at, zero
	// where nothing was.
	Stored time.Time `json:"stored"`
	Taken  time.Time `json:"taken,omitzero"`
	Count  int       `json:"count"`
}

const checkpointMagic = "shoalcp1"

// checkpointBlock is how much is compressed, and read again, at once.
const checkpointBlock = 256 << 10

func checkpointName(seq uint64) string { return fmt.Sprintf("state-%020d", seq) }

// record is one thing in a checkpoint: a resource, a status or a host.
type record struct {
	sort byte
	key  string
	data []byte
}

const (
	recordResource  = 'r' // <kind>.<id>
	recordStatus    = 's' // <host>.<kind>.<id>
	recordHost      = 'h' // <host>: hostRecord
	recordPublished = 'p' // <host>.<kind>.<id>: resource.PublishedItem
)

// hostRecord is what HISTORY and checkpoints keep of a host as a whole.
type hostRecord struct {
	Connected bool              `json:"connected"`
	Since     time.Time         `json:"since,omitzero"`
	Reported  bool              `json:"reported"`
	Facts     desired.HostFacts `json:"facts"`
	// Gen is the generation that was published for it.
	Gen uint64 `json:"gen,omitempty"`
}

func (h hostRecord) observation() resource.HostObservation {
	return resource.HostObservation{Connected: h.Connected, Since: h.Since, Reported: h.Reported, Facts: h.Facts}
}

// writeCheckpoint writes what each tells.
func writeCheckpoint(dir string, c checkpoint, each func(yield func(record) error) error) error {
	err := file.Replace(filepath.Join(dir, checkpointName(c.At.Seq)), 0o600, func(w *os.File) error {
		head, err := json.Marshal(c)
		if err != nil {
			return err
		}
		z := s2.NewWriter(w, s2.WriterConcurrency(1), s2.WriterBlockSize(checkpointBlock))
		var b []byte
		b = append(b, checkpointMagic...)
		b = binary.AppendUvarint(b, uint64(len(head)))
		if _, err := z.Write(append(b, head...)); err != nil {
			return err
		}
		put := func(r record) error {
			b = append(b[:0], r.sort)
			b = binary.AppendUvarint(b, uint64(len(r.key)))
			b = append(b, r.key...)
			b = binary.AppendUvarint(b, uint64(len(r.data)))
			b = append(b, r.data...)
			_, err := z.Write(b)
			return err
		}
		if err := each(put); err != nil {
			return err
		}
		// The end is marked, so that a file that was cut at a boundary is not taken for a whole one.
		if err := put(record{sort: 'e'}); err != nil {
			return err
		}
		return z.Close()
	})
	if err != nil {
		return fmt.Errorf("write checkpoint %d: %w", c.At.Seq, err)
	}
	return nil
}

// readCheckpoint reads a checkpoint whole. s2 has a checksum for each of its blocks.
func readCheckpoint(path string) (*state, *observation, checkpoint, error) {
	fail := func(err error) (*state, *observation, checkpoint, error) {
		return nil, nil, checkpoint{}, fmt.Errorf("read checkpoint %s: %w: %w", filepath.Base(path), errDamaged, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, checkpoint{}, fmt.Errorf("read checkpoint: %w", err)
	}
	defer func() { _ = f.Close() }()
	var buf bytes.Buffer
	if info, err := f.Stat(); err == nil {
		buf.Grow(int(min(8*info.Size(), 256<<20)))
	}
	if _, err := s2.NewReader(f, s2.ReaderMaxBlockSize(checkpointBlock)).DecodeConcurrent(&buf, 0); err != nil {
		return fail(err)
	}
	b := buf.Bytes()
	next := func() ([]byte, bool) {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			return nil, false
		}
		out := b[used : used+int(n) : used+int(n)] //nolint:gosec // not longer than b
		b = b[used+int(n):]                        //nolint:gosec // not longer than b
		return out, true
	}
	if !bytes.HasPrefix(b, []byte(checkpointMagic)) {
		return fail(fmt.Errorf("it does not begin as one"))
	}
	b = b[len(checkpointMagic):]
	head, ok := next()
	var c checkpoint
	if !ok || json.Unmarshal(head, &c) != nil {
		return fail(fmt.Errorf("its head"))
	}
	s, o := newState(), newObservation()
	s.at, s.stored = c.At, c.Stored
	for {
		if len(b) == 0 {
			return fail(io.ErrUnexpectedEOF)
		}
		sort := b[0]
		b = b[1:]
		key, ok1 := next()
		data, ok2 := next()
		if !ok1 || !ok2 {
			return fail(io.ErrUnexpectedEOF)
		}
		switch sort {
		case 'e':
			if s.count != c.Count {
				return fail(fmt.Errorf("it has %d resources, not %d", s.count, c.Count))
			}
			return s, o, c, nil
		case recordResource:
			kind, id, _ := strings.Cut(string(key), ".")
			s.put(resource.Kind(kind), id, data)
		case recordStatus:
			host, ref, _ := strings.Cut(string(key), ".")
			o.host(host).status[ref] = data
		case recordHost:
			var h hostRecord
			if json.Unmarshal(data, &h) == nil {
				x := o.host(string(key))
				x.seen, x.gen = h.observation(), h.Gen
			}
		case recordPublished:
			host, ref, _ := strings.Cut(string(key), ".")
			rev, cause, _ := strings.Cut(string(data), " ")
			n, err := strconv.ParseUint(rev, 10, 64)
			if err == nil {
				o.host(host).published[ref] = resource.PublishedItem{Rev: n, Cause: cause}
			}
		default: // of a newer controller
		}
	}
}
