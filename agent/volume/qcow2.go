package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// header is what we need of a qcow2 header (docs/interop/qcow2.txt of QEMU).
type header struct {
	size          uint64
	backing       string
	backingFormat string
	corrupt       bool
}

// headBytes is how much of a file parseHeader may need: the backing file's name lies within the first cluster, and
// QEMU puts it right behind the header's extensions.
const headBytes = 64 << 10

// errNotQCOW2 is content that does not start like a qcow2 file.
var errNotQCOW2 = errors.New("not a qcow2 file")

// parseHeader reads the beginning of a qcow2 file, at most headBytes of it.
func parseHeader(b []byte) (header, error) {
	if len(b) < 72 || !bytes.Equal(b[:4], []byte("QFI\xfb")) {
		return header{}, errNotQCOW2
	}
	be := binary.BigEndian
	version := be.Uint32(b[4:])
	if version != 2 && version != 3 {
		return header{}, fmt.Errorf("qcow2 version %d is not 2 or 3", version)
	}
	h := header{size: be.Uint64(b[24:])}
	length := uint64(72)
	if version == 3 {
		if len(b) < 104 {
			return header{}, errors.New("qcow2 header is cut off")
		}
		h.corrupt = be.Uint64(b[72:])&2 != 0
		length = uint64(be.Uint32(b[100:]))
		if length < 104 || length > uint64(len(b)) {
			return header{}, fmt.Errorf("qcow2 header length %d is impossible", length)
		}
	}
	offset, n := be.Uint64(b[8:]), uint64(be.Uint32(b[16:]))
	if offset != 0 {
		if n > 1023 || offset > uint64(len(b)) || offset+n > uint64(len(b)) {
			return header{}, fmt.Errorf("qcow2 backing file name at %d of %d bytes is out of reach", offset, n)
		}
		h.backing = string(b[offset : offset+n])
	}
	for at := length; at+8 <= uint64(len(b)); {
		kind, size := be.Uint32(b[at:]), uint64(be.Uint32(b[at+4:]))
		at += 8
		if kind == 0 || size > uint64(len(b))-at {
			break
		}
		if kind == 0xE2792ACA {
			h.backingFormat = string(b[at : at+size])
		}
		at += (size + 7) &^ 7
	}
	return h, nil
}
